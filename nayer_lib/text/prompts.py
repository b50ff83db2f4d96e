"""Prompt templates: from a class name to the text Y_y that the encoder reads (Section 3.2; Table 5)."""

import string
from collections.abc import Sequence

from ..errors import UserError, unknown

PROMPTS = {
    "p1": "A class of {name}.",  # Table 5, P1
    "p2": "A class of {name}",  # Table 5, P2: the paper's best, without the full stop
    "p3": "A photo of class {index}",  # Table 5, P3: no name at all
    "photo": "a photo of a {name}",  # Section 3.2
    "a": "a {name}",  # what the released embedding tables hold (docs/divergences.md, D9)
    "image": "a image of {name}",  # what the released script says
}


def template(prompt: str) -> str:
    """The template of a prompt id, or `prompt` itself if it is a template with a {name} or {index} slot."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"a prompt is a text with a {{name}} or {{index}} slot, not {prompt!r}.")
    if prompt in PROMPTS:
        return PROMPTS[prompt]
    if "{" not in prompt:
        raise unknown("prompt (or a template with a {name} or {index} slot)", prompt, PROMPTS)
    return prompt


def fill(prompt: str, names: Sequence[str]) -> list[str]:
    """One text a class. `prompt` is an id of PROMPTS or a template with {name} and/or {index} (which counts from 0).

    Raises:
        UserError: no text, no slot, another slot than {name} and {index}, or two classes with the same text.
    """
    text = template(prompt)
    try:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(text) if slot is not None}
        filled = [text.format(name=name, index=index) for index, name in enumerate(names)]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"the prompt {text!r} has a slot that is neither {{name}} nor {{index}} ({error}).") from error
    if not slots:
        raise UserError(f"the prompt {text!r} gives all classes the same text: it needs a {{name}} or {{index}} slot.")
    folded = [filling.casefold() for filling in filled]  # encoders ignore case: ImageNet has a Cardigan and a cardigan
    if same := [filling for filling in filled if folded.count(filling.casefold()) > 1][:2]:
        raise UserError(f"two classes get the same text, {same[0]!r} and {same[1]!r}: tell their names apart.")
    return filled

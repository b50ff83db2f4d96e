"""Parts that few runs need, imported by their place when a run asks for them."""

from importlib import import_module
from typing import Any

from .errors import UserError


def imported(place: str, asked: str, package: str = "nayer_lib") -> Any:
    """The object at "module:name".

    Args:
        place: of a module of another package, or of `package` with a dot in front.
        asked: what needs it, for the sentence.

    Raises:
        UserError: the other package is not installed.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(import_module(module, package), name)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        sentence = f"{asked} is of the package {error.name}, which is not installed: `pip install -e .`."
        raise UserError(sentence) from None

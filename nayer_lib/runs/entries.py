"""What a run card must hold to be read: a card that was cut off, or another program's, is known by what it lacks."""

# What is read of every card, and of a finished one: its entries and their kinds; those with a "?" may be missing.
NUMBER = int | float
CARD = {
    "id": str,
    "status": str,
    "config": {"method": str},
    "versions?": {},
    "test_split?": {"split?": str},
    "compute?": {},
    "curve?": list,
    "accuracy_last?": NUMBER,
}
FINISHED = {
    "teacher": {"accuracy": NUMBER, "sha256": str},
    "test_split": {"sha256": str},
    "device": str,
    "seconds": dict.fromkeys(("synthesis", "student", "evaluation", "total"), NUMBER),
    "curve": list,
    "accuracy_last": NUMBER,
    "accuracy_best": NUMBER,
}


def check_entries(card: object) -> None:
    """Raise a ValueError if this JSON value is no card, or lacks an entry that is read of it."""
    if not isinstance(card, dict):
        raise ValueError("no JSON object")
    _check(card, CARD)
    if card["status"] == "finished":
        _check(card, FINISHED)


def _check(found: dict, kinds: dict) -> None:
    """Raise a ValueError if an entry of a JSON object is missing, or of another kind than named."""
    for name, kind in kinds.items():
        entry = name.removesuffix("?")
        if entry not in found and name != entry:
            continue
        if not isinstance(found.get(entry), dict if isinstance(kind, dict) else kind):
            raise ValueError(f"no {entry}, or one of another kind")
        if isinstance(kind, dict):
            _check(found[entry], kind)

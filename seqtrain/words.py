"""Numbers with their nouns, in messages."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """The number with thousands separated, and the words that agree with it.

    Args:
        number: How many.
        one: Words for exactly one: ``record``, ``record is left out``.
        many: Words for any other number; ``one`` with an s if not given.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"

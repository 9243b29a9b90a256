"""How many optimizer steps an epoch has.  Pure Python: `plan` asks it as well as the loader."""

from __future__ import annotations


def shuffled(samples: int, batch: int) -> int:
    """Of samples drawn one by one; the last step is smaller where the batch does not divide them."""
    return -(-samples // batch)


def windows(tokens: int, rows: int, window: int) -> int:
    """Of a text cut into `rows` rows, read `window` words at a time; the last word is a target only."""
    return (tokens // rows - 1) // window

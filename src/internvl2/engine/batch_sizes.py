"""The few batch sizes that steps of written tokens are padded to, so that each is recorded once."""

MOST_PADDING = 15
"""Rows that a batch has beside its sequences."""


def padded(rows: int) -> int:
    """The batch size that so many rows are padded to: few sizes, and little padding."""
    if rows <= 8:
        return power_of_two(rows)
    step = 8 if rows <= 32 else MOST_PADDING + 1
    return -(-rows // step) * step


def sizes_up_to(rows: int) -> list[int]:
    """All batch sizes of at most so many rows, the largest first."""
    return sorted({padded(count) for count in range(1, rows + 1)}, reverse=True)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()

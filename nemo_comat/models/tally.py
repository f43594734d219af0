"""Counts the rows of manifests that are left, and says why the others are not."""

from collections.abc import Mapping
from typing import Any


class Tally:
    """Rows kept and left out of the manifests that one ``*_ds`` block names.

    Examples:
        >>> tally = Tally()
        >>> tally.add("line 1"), tally.add("line 2", "too long"), tally.add("line 3", "too long")
        (None, None, None)
        >>> tally.kept, tally.rows, tally.why()
        (1, 3, '2 too long, the first in line 2')
    """

    def __init__(self) -> None:
        self.rows = self.kept = 0
        self._reasons: dict[str, tuple[int, str]] = {}  # a reason's count of rows, and where the first of them is

    def add(self, where: str, reason: str | None = None) -> None:
        """Counts a row; where: how messages call it. reason: why it is left out, or None where it is kept."""
        self.rows += 1
        if reason is None:
            self.kept += 1
        else:
            count, first = self._reasons.get(reason, (0, where))
            self._reasons[reason] = count + 1, first

    def why(self) -> str:
        """The reasons in words, each with its count and its first row."""
        return "; ".join(f"{count} {reason}, the first in {first}" for reason, (count, first) in self._reasons.items())

    def none_left(self, name: str) -> str:
        """What is said where no row is kept; name: how messages call the block."""
        return f"{name} has no rows left of {self.rows}: {self.why()}; change these limits, or give other manifests."


def beyond(duration: float, limits: Mapping[str, Any]) -> str | None:
    """Why a duration is outside a block's limits, or None.

    Args:
        duration: seconds. limits: dict with min_duration and max_duration in seconds, which may be null or absent.
    Examples:
        >>> beyond(0.2, {"min_duration": 0.5}), beyond(0.7, {"min_duration": 0.5, "max_duration": None})
        ('shorter than min_duration=0.5', None)
    """
    low, high = limits.get("min_duration"), limits.get("max_duration")
    if low is not None and duration < low:
        return f"shorter than min_duration={low}"
    if high is not None and duration > high:
        return f"longer than max_duration={high}"
    return None

"""Hours in which a node works, as people write them: `mon-fri 22:00-06:00`; pure.

Minutes count from Monday 00:00 of the machine's own time zone.  A range that ends before it begins
goes on over midnight; the day is that of its beginning.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES: Final = 24 * 60
WEEK_MINUTES: Final = 7 * DAY_MINUTES
RANGES_MAX: Final = 32
_RANGE: Final = re.compile(
    r"(?:(?P<days>[a-z,-]+)\s+)?(?P<from>\d{1,2}:\d{2})\s*-\s*(?P<to>\d{1,2}:\d{2})"
)
_EXAMPLE: Final = "write it as 22:00-06:00, or mon-fri 18:00-08:00, or sat,sun 00:00-24:00"


@dataclass(frozen=True, slots=True)
class Hours:
    """Ranges of minutes of the week, the end outside; none: always."""

    ranges: tuple[tuple[int, int], ...] = ()

    def are_open(self, minute: int) -> bool:
        """Whether this minute of the week is inside."""
        return not self.ranges or any(
            begin <= minute < end or begin <= minute + WEEK_MINUTES < end
            for begin, end in self.ranges
        )

    def opens_in(self, minute: int) -> int:
        """Minutes until the next range begins; 0 while one is open."""
        if self.are_open(minute):
            return 0
        return min((begin - minute) % WEEK_MINUTES for begin, _ in self.ranges)


def parse_hours(texts: Sequence[str]) -> Hours:
    """The hours in these texts.  Raises `ValueError` with a sentence for a person."""
    if len(texts) > RANGES_MAX:
        raise ValueError(f"{len(texts)} ranges of hours are too many; at most {RANGES_MAX}")
    return Hours(tuple(pair for text in texts for pair in _ranges(text)))


def _ranges(text: str) -> list[tuple[int, int]]:
    found = _RANGE.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} are no hours; {_EXAMPLE}")
    begin, end = _minute(found["from"], text), _minute(found["to"], text)
    if begin == end:
        raise ValueError(f"{text!r} begins where it ends; {_EXAMPLE}")
    end += DAY_MINUTES if end < begin else 0
    days = _days(found["days"], text) if found["days"] else range(7)
    return [(day * DAY_MINUTES + begin, day * DAY_MINUTES + end) for day in days]


def _minute(text: str, whole: str) -> int:
    hour, minute = (int(part) for part in text.split(":"))
    if minute > 59 or hour * 60 + minute > DAY_MINUTES:
        raise ValueError(f"{whole!r}: {text} is no time of a day")
    return hour * 60 + minute


def _days(text: str, whole: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{whole!r}: {part!r} are no days; {_EXAMPLE}")
        begin = DAYS.index(first)
        count = (DAYS.index(last) - begin) % 7 if dash else 0
        found += [(begin + more) % 7 for more in range(count + 1)]
    return sorted(set(found))

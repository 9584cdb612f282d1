"""Which files of a watched folder are films to convert now; pure: what was seen, when, and what became of it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from node.gateway.models import SubmitRequest
from node.work.extensions import VIDEO_EXTENSIONS

FILES_MAX: Final = 250_000
"""Files that one watched folder remembers: some 60 MB; what is beyond is told and not taken."""
PATTERNS_MAX: Final = 64

Became = Literal["seen", "submitted", "known", "refused"]
"""seen: it settles, or waits for its turn; known: its content is converted, queued, or our own result."""


class Filters(BaseModel):
    """What is taken; `include` and `exclude` are patterns on the path below the folder (`shows/*`)."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    extensions: list[str] = Field(default_factory=list[str], max_length=PATTERNS_MAX)
    """Without dots; none: those of videos."""
    min_bytes: int = Field(default=1, ge=1, lt=1 << 53)
    hidden: bool = False
    include: list[str] = Field(default_factory=list[str], max_length=PATTERNS_MAX)
    exclude: list[str] = Field(default_factory=list[str], max_length=PATTERNS_MAX)
    settle_s: int = Field(default=10, ge=0, le=86_400)
    """A file is taken when neither size nor time changed for so long."""
    scan_s: int = Field(default=60, ge=1, le=86_400)
    """The whole folder is looked through so often: network shares tell of no change."""

    def take(self, name: str) -> bool:
        """Whether a path below the folder, with slashes, is of interest by its name alone."""
        parts = name.split("/")
        if not self.hidden and any(part.startswith(".") for part in parts):
            return False
        stem, _, extension = parts[-1].rpartition(".")
        known: Collection[str] = [e.lower() for e in self.extensions] or VIDEO_EXTENSIONS
        if not stem or extension.lower() not in known:
            return False
        if any(fnmatchcase(name, pattern) for pattern in self.exclude):
            return False
        return not self.include or any(fnmatchcase(name, pattern) for pattern in self.include)


class WatchSettings(BaseModel):
    """What is done with what a folder brings: a submission without paths, and the filters."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    request: SubmitRequest
    """Its one path is the folder."""
    filters: Filters = Field(default_factory=Filters)


@dataclass(frozen=True, slots=True)
class Facts:
    """What tells that a file did not change, without reading it."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(slots=True)
class _Seen:
    facts: Facts
    since_ms: int
    became: Became = "seen"


@dataclass(slots=True)
class Memory:
    """The files of one folder; `full` says that there were more than it remembers."""

    files: dict[str, _Seen] = field(default_factory=dict[str, "_Seen"])
    full: bool = False

    def look(self, found: Iterable[tuple[str, Facts]], now_ms: int, *, whole: bool) -> None:
        """Notes what lies there; `whole`: what was not found is gone, and forgotten."""
        names: set[str] = set()
        self.full = self.full and not whole
        for name, facts in found:
            names.add(name)
            known = self.files.get(name)
            if known is None and len(self.files) >= FILES_MAX:
                self.full = True
            elif known is None or known.facts != facts:
                self.files[name] = _Seen(facts, now_ms)
        if whole:
            for name in self.files.keys() - names:
                del self.files[name]

    def gone(self, name: str) -> None:
        """The file is not there any more."""
        self.files.pop(name, None)

    def settled(self, now_ms: int, settle_ms: int) -> list[tuple[str, Facts]]:
        """Files that nobody has looked into and that did not change for so long, the oldest first."""
        ready = [
            (seen.since_ms, name, seen.facts)
            for name, seen in self.files.items()
            if seen.became == "seen" and now_ms - seen.since_ms >= settle_ms
        ]
        return [(name, facts) for _, name, facts in sorted(ready, key=lambda one: one[:2])]

    def settles_in_ms(self, now_ms: int, settle_ms: int) -> int | None:
        """When the next one is settled; None: none waits."""
        waits = [s.since_ms + settle_ms - now_ms for s in self.files.values() if s.became == "seen"]
        return max(0, min(waits)) if waits else None

    def end(self, name: str, facts: Facts, became: Became) -> None:
        """What became of a file that is still the same."""
        seen = self.files.get(name)
        if seen is not None and seen.facts == facts:
            seen.became = became

    def counts(self) -> dict[str, int]:
        """Files by what became of them."""
        found: dict[str, int] = {}
        for seen in self.files.values():
            found[seen.became] = found.get(seen.became, 0) + 1
        return found

"""The simplest `LogStorage` there is: what is persisted survives, what is not does not exist."""

from collections.abc import Sequence

from mesh.log import Base, Entry, HardState


class MemoryLog:
    """A log in memory; the object is the disk, so it outlives the node that crashes."""

    def __init__(self) -> None:
        self._hard_state = HardState()
        self._base = Base()
        self._entries: list[Entry] = []

    def hard_state(self) -> HardState:
        return self._hard_state

    def base(self) -> Base:
        return self._base

    def first_index(self) -> int:
        return self._base.index + 1

    def last_index(self) -> int:
        return self._base.index + len(self._entries)

    def term(self, index: int) -> int | None:
        if index == self._base.index:
            return self._base.term
        position = index - self.first_index()
        return self._entries[position].term if 0 <= position < len(self._entries) else None

    def entries(self, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
        taken: list[Entry] = []
        size = 0
        first = self.first_index()
        for entry in self._entries[max(0, low - first) : max(0, high - first)]:
            size += len(entry.data)
            if taken and size > bytes_max:
                break
            taken.append(entry)
        return tuple(taken)

    def persist(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        if entries:
            first = entries[0].index
            assert self.first_index() <= first <= self.last_index() + 1, "a gap in the log"
            del self._entries[first - self.first_index() :]
            self._entries.extend(entries)
        if hard_state is not None:
            self._hard_state = hard_state

    def compact(self, base: Base) -> None:
        if base.index <= self._base.index:
            return
        assert self.term(base.index) == base.term, "a base that the log does not have"
        del self._entries[: base.index - self._base.index]
        self._base = base

    def restart_from(self, base: Base, hard_state: HardState) -> None:
        self._entries.clear()
        self._base = base
        self._hard_state = hard_state

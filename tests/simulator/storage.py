"""The simplest `LogStorage` there is: what is persisted survives, what is not does not exist."""

from collections.abc import Sequence

from mesh.log import Entry, HardState


class MemoryLog:
    """A log in memory; the object is the disk, so it outlives the node that crashes."""

    def __init__(self) -> None:
        self._hard_state = HardState()
        self._entries: list[Entry] = []

    def hard_state(self) -> HardState:
        return self._hard_state

    def first_index(self) -> int:
        return 1

    def last_index(self) -> int:
        return len(self._entries)

    def term(self, index: int) -> int | None:
        if index == 0:
            return 0
        return self._entries[index - 1].term if 0 < index <= len(self._entries) else None

    def entries(self, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
        taken: list[Entry] = []
        size = 0
        for entry in self._entries[low - 1 : high - 1]:
            size += len(entry.data)
            if taken and size > bytes_max:
                break
            taken.append(entry)
        return tuple(taken)

    def persist(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        if hard_state is not None:
            self._hard_state = hard_state
        if entries:
            first = entries[0].index
            assert first <= len(self._entries) + 1, "a gap in the log"
            del self._entries[first - 1 :]
            self._entries.extend(entries)

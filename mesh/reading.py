"""Linearizable reads without an entry of the log: the read index (dissertation, 6.4).

A leader may answer a read from its ledger when, after the read came, a majority still followed it,
and the ledger has applied everything that was committed when the read came.  One round of heartbeats
proves the first for all reads that came before it started.
"""

from typing import Final

from mesh.errors import BusyError

READS_MAX: Final = 4_096
"""Reads that may wait: as many as a driver takes proposals."""


class Reads:
    """The reads that wait at one leader, and its rounds of confirmation."""

    def __init__(self) -> None:
        self.round = 0
        """The round that was started last."""
        self._confirmed = 0
        self._waiting: list[tuple[int, int, int]] = []
        """Id, index, and the first round that can confirm it; in the order of their coming."""

    def add(self, read_id: int, index: int) -> None:
        """Takes a read that needs `index` to be committed.  Raises `BusyError`."""
        if len(self._waiting) >= READS_MAX:
            raise BusyError(f"{READS_MAX} reads wait for a majority", "retry in a moment")
        self._waiting.append((read_id, index, self.round + 1))

    @property
    def is_open(self) -> bool:
        """Whether a round is under way."""
        return self.round > self._confirmed

    @property
    def wants_round(self) -> bool:
        """Whether reads wait for a round that did not start yet."""
        return bool(self._waiting) and self._waiting[-1][2] > self.round

    def start_round(self) -> None:
        """Heartbeats from now on prove more than those before."""
        self.round += 1

    def confirm(self, number: int) -> None:
        """A majority answered in this round or later ones."""
        self._confirmed = max(self._confirmed, number)

    def take_ready(self, commit_index: int) -> list[tuple[tuple[int, ...], int]]:
        """Ids of reads that may be served, by the index that they need."""
        if not self._waiting:
            return []
        ready: dict[int, list[int]] = {}
        waiting: list[tuple[int, int, int]] = []
        for read in self._waiting:
            read_id, index, number = read
            if number <= self._confirmed and index <= commit_index:
                ready.setdefault(index, []).append(read_id)
            else:
                waiting.append(read)
        self._waiting = waiting
        return [(tuple(ids), index) for index, ids in ready.items()]

"""Which device an encoder takes when several can do it: the one with the least to do."""

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from node.media.encoders import FORMS


class Devices:
    """The devices of a machine and what runs on each; encoders of one family share theirs."""

    def __init__(self, places: Mapping[str, tuple[str, ...]]) -> None:
        """`places` are the devices of each encoder that needs one named."""
        self._places = dict(places)
        self._running: Counter[tuple[str, str]] = Counter()

    @property
    def chips_at_work(self) -> bool:
        """Whether a run of ours is on a device that is not the processor."""
        return any(runs for (family, _), runs in self._running.items() if family != "CPU")

    @contextmanager
    def lent(self, encoder: str, place: str | None = None) -> Generator[str]:
        """A device for one run, this one where it is named; "" where the encoder has only one.

        Turns would not do: a long film holds its device while short ones pass by on the others.
        """
        places = self._places.get(encoder, ("",)) if place is None else (place,)
        family = FORMS[encoder].family if encoder in FORMS else encoder
        chosen = min(places, key=lambda place: self._running[family, place])
        self._running[family, chosen] += 1
        try:
            yield chosen
        finally:
            self._running[family, chosen] -= 1

"""A `Lan` on the software switch: the same hosts and methods, and ways that can be made bad.

with SwitchedLan(3) as lan:
    lan.spoil(1, loss=0.3, delay_ms=200)      # all that host 1 sends, and all that it gets
    lan.way(1, 2, cut=True)                   # host 2 hears nothing of host 1; 1 hears 2
    lan.mend(1)
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from tests.netns import Lan, ip
from tests.switch import QUEUE_FRAMES, Way, mac

SWITCH: Final = Path(__file__).with_name("switch.py")


class SwitchedLan(Lan):
    """`hosts` machines on a switch that can lose, delay, double and reorder frames."""

    def __init__(self, hosts: int) -> None:
        super().__init__(hosts)
        self._ways = {(a, b): Way() for a in self.hosts for b in self.hosts if a != b}
        self._process: subprocess.Popen[bytes] | None = None

    def way(self, source: int, target: int, **changes: Any) -> None:
        """Changes some properties of the way from one host to another; the others stay."""
        self._ways[source, target] = way = dataclasses.replace(
            self._ways[source, target], **changes
        )
        self._order({"from": source, "to": target, "way": dataclasses.asdict(way)})

    def spoil(self, host: int, **changes: Any) -> None:
        """Changes all ways from and to a host: a bad cable, a far place, a slow line."""
        for other in self._others(host):
            self.way(host, other, **changes)
            self.way(other, host, **changes)

    def mend(self, host: int) -> None:
        """All ways from and to a host are good again."""
        self.spoil(host, **dataclasses.asdict(Way()))

    def counts(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Frames carried and dropped so far, by way."""
        return {(a, b): (c, d) for a, b, c, d in json.loads(self._order({"counts": True}))}

    # --- what a `Lan` can do, by the switch -------------------------------------------------------

    def unplug(self, host: int) -> None:
        """The host loses its carrier, its interface stays up."""
        self._order({"plugged": host, "is": False})

    def plug(self, host: int) -> None:
        """Undoes `unplug`."""
        self._order({"plugged": host, "is": True})

    def mute(self, host: int, *to: int) -> None:
        """What a host sends to these others (or to any) gets lost; what they send arrives."""
        for other in to or self._others(host):
            self.way(host, other, cut=True)

    def unmute(self, host: int) -> None:
        """Undoes `mute`."""
        for other in self._others(host):
            self.way(host, other, cut=False)

    def isolate(self, *hosts: int) -> None:
        """Nothing passes between these hosts; to the rest it does."""
        self._among(hosts, cut=True)

    def join(self, *hosts: int) -> None:
        """Undoes `isolate`."""
        self._among(hosts, cut=False)

    def block_multicast(self, *hosts: int) -> None:
        """No multicast reaches these hosts, or any."""
        self._multicast(hosts, passes=False)

    def allow_multicast(self, *hosts: int) -> None:
        """Undoes `block_multicast`."""
        self._multicast(hosts, passes=True)

    def limit(self, host: int, rate: str) -> None:
        """Bounds what a host sends to each other host, and each other to it, for example `100mbit`."""
        self.spoil(host, rate_mbit=float(rate.removesuffix("mbit")))

    def capture(self, path: Path) -> NoReturn:
        """Not here: no interface sees all frames.  Raises `NotImplementedError`."""
        raise NotImplementedError(f"{path}: capture on a Lan, or inside a host")

    # --- making -----------------------------------------------------------------------------------

    def _build_switch(self) -> None:
        argv = ["ip", "netns", "exec", self._switch, sys.executable, str(SWITCH)]
        argv.append(str(len(self.hosts)))
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._processes.append(self._process)
        if (said := self._answer()) != "ready":
            raise OSError(f"the switch did not start: {said!r}")

    def _connect(self, host: int) -> None:
        name = self.namespace(host)
        ip("-n", self._switch, "link", "set", f"p{host}", "netns", name, "name", "eth0")
        shape = ["address", mac(host).hex(":"), "txqueuelen", str(QUEUE_FRAMES)]
        ip("-n", name, "link", "set", "eth0", *shape)

    def _delete(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        super()._delete()

    # --- inside -----------------------------------------------------------------------------------

    def _others(self, host: int) -> list[int]:
        return [each for each in self.hosts if each != host]

    def _among(self, hosts: tuple[int, ...], *, cut: bool) -> None:
        for host in hosts:
            for other in hosts:
                if host != other:
                    self.way(host, other, cut=cut)

    def _multicast(self, hosts: tuple[int, ...], *, passes: bool) -> None:
        for host in hosts or self.hosts:
            for other in self._others(host):
                self.way(other, host, multicast=passes)

    def _order(self, order: dict[str, object]) -> str:
        """Raises `OSError` when the switch is gone."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._answer()
        if not answer:
            raise OSError("the switch ended")
        return answer

    def _answer(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

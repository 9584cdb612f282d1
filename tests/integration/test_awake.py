"""Sleep is held off by the system's own means, or it is said in a line why it cannot."""

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.work.awake_wakepy import SystemWakeLock
from tests.meshwork import wait_until

jeepney = pytest.importorskip("jeepney", reason="wakepy asks no bus on this system")

from jeepney.io.blocking import DBusConnection, open_dbus_connection  # noqa: E402 - behind the skip

NAME = "org.freedesktop.PowerManagement"


def test_without_anybody_to_ask_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.devnull)

    async def body() -> None:
        lock = SystemWakeLock()
        why = await lock.hold()
        assert why.startswith("it runs outside a desktop's session")
        assert len(why) < 200
        await lock.let_go()

    asyncio.run(body())


class Desktop(threading.Thread):
    """What a desktop does: gives cookies to who wants no sleep, and takes them back."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.held: set[int] = set()
        self.asked = 0
        self._link: DBusConnection = open_dbus_connection(bus=address)
        taken = self._link.send_and_get_reply(jeepney.message_bus.RequestName(NAME))
        assert taken.body == (1,)

    def run(self) -> None:
        while True:
            try:
                message = self._link.receive()
            except (OSError, EOFError):
                self._link.close()
                return  # the bus is gone
            member = message.header.fields.get(jeepney.HeaderFields.member)
            if member == "Inhibit":
                self.asked += 1
                self.held.add(self.asked)
                self._link.send(jeepney.new_method_return(message, "u", (self.asked,)))
            elif member == "UnInhibit":
                self.held.discard(message.body[0])
                self._link.send(jeepney.new_method_return(message))


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desktop]:
    """On a session's bus of this test's own."""
    program = shutil.which("dbus-daemon")
    if program is None:
        pytest.skip("no dbus-daemon here")
    address = f"unix:path={tmp_path / 'bus'}"
    words = [program, "--session", "--nofork", f"--address={address}"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as daemon:
        wait_until((tmp_path / "bus").exists)
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
        made = Desktop(address)
        made.start()
        yield made
        daemon.kill()
    made.join()


def test_a_desktop_is_asked_and_let_go(desktop: Desktop) -> None:
    async def body() -> None:
        lock = SystemWakeLock()
        for number in (1, 2):
            assert await lock.hold() == ""
            assert desktop.held == {number}
            await lock.let_go()
            assert desktop.held == set()

    asyncio.run(body())

"""Sleep is held off by the system's own means, or it is said why it cannot."""

import asyncio
import os

import pytest

from node.work.awake_wakepy import SystemWakeLock


def test_without_anybody_to_ask_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.devnull)

    async def body() -> None:
        lock = SystemWakeLock()
        why = await lock.hold()
        assert "DBUS_SESSION_BUS_ADDRESS" in why
        assert "\n" not in why
        await lock.let_go()

    asyncio.run(body())

"""A quarantined node is released by its own proof, and by nothing less."""

import asyncio
from collections.abc import Collection
from typing import Any

from ledger.orders import ReleaseNode
from mesh.errors import DarkStreamError
from mesh.ids import NodeId
from node.work import probation
from node.work.probation import Probation
from tests.meshwork import eventually
from tests.unit.test_ledger_orders import fail_on
from tests.work_bench import Mesh


def test_it_stays_until_every_encoder_works(monkeypatch: Any) -> None:
    monkeypatch.setattr(probation, "FIRST_S", 0.001)
    monkeypatch.setattr(probation, "LONGEST_S", 0.002)
    mesh: Any = Mesh("anna")
    mesh.ledger.formed("bert").planned("a", "b", "c")
    for name in "abc":
        fail_on(mesh.ledger, name, "anna")
    asked: list[int] = []

    async def prove() -> Collection[str]:
        asked.append(1)
        if len(asked) == 1:
            raise DarkStreamError("no FFmpeg at all")
        return {"libx264"} if len(asked) == 2 else {"libx264", "libsvtav1", "more"}

    async def body() -> None:
        duty = Probation(
            own=NodeId("anna"),
            name="Anna",
            driver=mesh,
            proposer=mesh,
            replica=mesh.replica,
            prove=prove,
        )
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(duty.run())
            await eventually(lambda: not mesh.ledger.reader.node("anna").quarantine)
            task.cancel()

    async def commit(command: Any, *, cause: str) -> int:
        return int((await mesh.propose(command, cause=cause)).index)

    mesh.commit = commit
    assert mesh.ledger.reader.node("anna").quarantine
    asyncio.run(body())
    assert len(asked) == 3
    (released,) = mesh.taken(ReleaseNode)
    assert released.by == "the proof of Anna"

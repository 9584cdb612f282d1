"""A mesh of nodes with no chip, one and two, and an older node that tells of none: real ledger, real scheduler.

Films end in an order drawn from the seed.  After each round: no device has more than its slots, and
none with a free slot is left idle beside a film that it can make.
"""

from collections import Counter
from dataclasses import replace
from itertools import count
from random import Random
from typing import Final

import pytest

from ledger import commands as c
from ledger.device_slots import CPU, DeviceSlots, ReportSlots, from_text
from ledger.jobs import Attempt
from ledger.scheduler import decide, explain
from ledger.scheduler_view import SchedulerView
from tests.ledger_helper import Ledger, job_spec, node_report, plan_of, task_spec

SOFTWARE: Final = ("libsvtav1", "libx264")
CHIP: Final = ("av1_nvenc",)
NEEDS: Final = {"cpu": SOFTWARE[:1], "chip": CHIP, "either": (*CHIP, SOFTWARE[0])}
DEVICES: Final = {
    "anna": {CPU: 2},
    "bert": {CPU: 1, "gpu0": 1},
    "cleo": {CPU: 1, "gpu0": 1, "gpu1": 2},
}
OLD_SLOTS: Final = 2


def devices(slots: dict[str, int]) -> tuple[DeviceSlots, ...]:
    return tuple(
        DeviceSlots(
            device=name, label=name, slots=number, encoders=SOFTWARE if name == CPU else CHIP
        )
        for name, number in slots.items()
    )


class Mesh:
    def __init__(self, seed: int, jobs: int) -> None:
        self.random = Random(seed)
        self.ledger = Ledger().formed("bert", "cleo", "dora")
        self.slots = {name: dict(slots) for name, slots in DEVICES.items()}
        self.ledger.must(node_report("dora", slots=OLD_SLOTS, encoders=(*SOFTWARE, *CHIP)))
        for node, slots in self.slots.items():
            self.ledger.must(ReportSlots(node=node, devices=devices(slots)))
        self.names = count()
        self.kinds = [self.random.choice(list(NEEDS)) for _ in range(jobs)]
        for number, kind in enumerate(self.kinds):
            job = f"j{number}"
            self.ledger.must(c.SubmitJobs(jobs=(job_spec(job),)))
            task = task_spec(job, needs=NEEDS[kind], cost=self.random.randrange(1, 99))
            self.ledger.must(plan_of(job, task))

    def view(self) -> SchedulerView:
        seen = self.ledger.reader.schedulable()
        return replace(
            seen,
            ahead=False,
            nodes=tuple(replace(node, alive=True) for node in seen.nodes),
            new_attempt_id=lambda: f"a{next(self.names)}",
        )

    def held(self) -> Counter[tuple[str, str]]:
        return Counter(
            (attempt.node, attempt.device) for attempt in self.ledger.reader.active_attempts()
        )

    def round(self) -> None:
        before = self.held()
        for command in decide(self.view(), 0).commands:
            self.ledger.must(command)
        now = self.held()
        for (node, device), taken in now.items():
            slots = OLD_SLOTS if node == "dora" else self.slots[node][device]
            assert taken <= max(slots, before[node, device]), (node, device)
        self.check_nobody_idles(now)

    def check_nobody_idles(self, held: Counter[tuple[str, str]]) -> None:
        seen = self.view()
        for node, slots in self.slots.items():
            for device, number in slots.items():
                able = SOFTWARE if device == CPU else CHIP
                waiting = [task for task in seen.tasks if set(task.needs) & set(able)]
                assert not waiting or held[node, device] >= number, (node, device)
                for task in waiting:
                    assert "could take it" not in str(explain(seen, task, 0))

    def end_some(self) -> None:
        active = list(self.ledger.reader.active_attempts())
        for attempt in self.random.sample(active, self.random.randrange(1, len(active) + 1)):
            self.end(attempt)

    def end(self, attempt: Attempt) -> None:
        if self.random.random() < 0.1:
            release = c.ReleaseLeases(node=attempt.node, attempts=(attempt.id,), what="stops")
            self.ledger.must(release)
            return
        self.ledger.must(self.ledger.finish(attempt.id))
        self.ledger.must(self.ledger.accept(attempt.job, attempt.id))

    def change_slots(self) -> None:
        node = self.random.choice(list(self.slots))
        device = self.random.choice(list(self.slots[node]))
        self.slots[node][device] = self.random.randrange(4)
        self.ledger.must(ReportSlots(node=node, devices=devices(self.slots[node])))


@pytest.mark.parametrize("seed", range(6))
def test_each_device_gets_what_it_can_make_and_never_more_than_its_slots(seed: int) -> None:
    mesh = Mesh(seed, jobs=50)
    for _ in range(400):
        mesh.round()
        if not mesh.ledger.reader.active_attempts():
            if not mesh.view().tasks:
                break
            mesh.slots = {name: dict(slots) for name, slots in DEVICES.items()}
            for node, slots in mesh.slots.items():
                mesh.ledger.must(ReportSlots(node=node, devices=devices(slots)))
            continue
        mesh.end_some()
        if mesh.random.random() < 0.3:
            mesh.change_slots()
    made: Counter[str] = Counter()
    for number, kind in enumerate(mesh.kinds):
        assert mesh.ledger.job_state(f"j{number}") == "publishing"
        (attempt,) = mesh.ledger.reader.attempts(f"j{number}", "accepted")
        if attempt.node != "dora":
            row = mesh.ledger.reader.node(attempt.node)
            assert row is not None
            used = next(d for d in from_text(row.device_slots) if d.device == attempt.device)
            assert set(used.encoders) & set(NEEDS[kind])
        told = [e.what for e in mesh.ledger.reader.events(f"j{number}") if e.kind == "job.running"]
        fell_back = kind == "either" and attempt.device == CPU
        assert ("falls back from av1_nvenc" in told[-1]) == fell_back
        made[attempt.device] += 1
    assert set(made) == {"", CPU, "gpu0", "gpu1"}

"""Gives what a person sets for a node its files, and who keeps to it its children and counters."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from mesh import clock
from mesh.ids import sortable_id
from mesh.limits import LinkRates
from node.consensus.replica import Replica
from node.gateway.models import SubmitRequest, SubmitResult
from node.machine import Machine
from node.media.profiles import BUILT_IN
from node.member import MemberNode
from node.settings.config import Config
from node.work.allowed_files import Allowed
from node.work.awake_wakepy import SystemWakeLock
from node.work.films import Films
from node.work.gpu_files import Busiest, ChipFiles
from node.work.gpu_nvml import GpuUse
from node.work.keeper import Draining, Keeper
from node.work.limiting import LIMITS, Limiting, NodeLimits, UseSlots
from node.work.limits_files import KeptFile
from node.work.probation import Probation
from node.work.submission import Submission
from node.work.submission_files import prepare
from node.work.usage_files import Usage
from node.work.wanted import profile_of
from node.work.watch_files import WatchedFolder
from node.work.watch_rules import WatchSettings
from node.work.watcher import Watcher
from node.work.working import WORKING, ConfiguredWork, KeptWork, Working

WORK_FILE: Final = "work"
LIMITS_FILE: Final = "limits"


def limiting_of(
    config: Config,
    home: Path,
    use_rates: Callable[[LinkRates], None],
    use_slots: UseSlots,
) -> Limiting:
    """Who holds the limits that a person sets."""
    return Limiting(
        store=KeptFile(home / LIMITS_FILE, LIMITS, NodeLimits),
        configured=config.transfer.rates,
        use_rates=use_rates,
        use_slots=use_slots,
    )


def new_job_id() -> str:
    """A job id that sorts by time of submission."""
    return sortable_id("j", clock.wall_ms(), secrets.token_bytes(5))


async def prepared(
    request: SubmitRequest, owner: str, allowed: Allowed, replica: Replica
) -> Submission:
    """What this machine finds of a request: it searches folders and looks at files, in a thread."""
    profile = profile_of(request)
    kept = await replica.read(lambda reader: reader.profiles())
    return await asyncio.to_thread(
        prepare,
        request,
        profile,
        owner=owner,
        allowed=allowed.folders,
        check_output=allowed.split,
        profile_names=tuple({*BUILT_IN, *(one.name for one in kept), profile.name}),
        new_id=new_job_id,
    )


def watcher_of(
    member: MemberNode,
    films: Films,
    submit: Callable[[SubmitRequest], Awaitable[SubmitResult]],
) -> Watcher:
    """Who converts what appears in the watched folders of this machine."""

    def opened(folder: Path, settings: WatchSettings) -> WatchedFolder:
        filters = settings.filters
        return WatchedFolder(folder, filters.take, filters.min_bytes)

    return Watcher(
        own=member.own,
        driver=member.driver,
        replica=member.replica,
        open_folder=opened,
        digest=films.digest_of,
        submit=submit,
        profile_json=lambda request: profile_of(request).to_json(),
    )


def watchable(allowed: Allowed, text: str, output: str | None) -> Path:
    """A folder that may be watched, with an output that may be written.  Raises `PathError`."""
    folder = allowed.folder(text)
    if output is not None:
        allowed.split(str(Path(output) / "film"))
    return folder


async def keep(
    config: Config, member: MemberNode, machine: Machine, keeper: Keeper, worker: Draining
) -> None:
    """Keeps to the owner's rules, and proves this node's encoders anew when it is quarantined."""
    probation = Probation(
        own=member.own,
        name=config.name,
        driver=member.driver,
        proposer=member.proposer,
        replica=member.replica,
        prove=machine.prove_anew,
    )

    async def wanted() -> bool:
        return await member.replica.read(lambda reader: reader.works_for(member.own))

    async with asyncio.TaskGroup() as group:
        group.create_task(keeper.run(worker, wanted), name="rules")
        group.create_task(probation.run(), name="probation")


def keeping_of(
    config: Config, home: Path, machine: Machine, running: Callable[[], int]
) -> tuple[Keeper, Working]:
    """Who keeps to the rules, and who holds them; `running` counts attempts."""
    children = machine.children
    keeper = Keeper(
        children=children,
        processors=Usage(),
        gpu=Busiest(
            (
                GpuUse(lambda: children.encoding, lambda: machine.chips_at_work),
                ChipFiles(lambda: machine.chips_at_work),
            )
        ),
        awake=SystemWakeLock() if config.work.keep_awake else None,
    )
    configured = ConfiguredWork(
        hours=config.schedule.hours,
        busy_percent=config.work.busy_percent,
        nice=config.work.nice,
        threads=config.work.threads,
        gpu_percent=config.work.gpu_percent,
        memory_mib=config.work.memory_mib,
        labels=config.work.labels,
    )
    store = KeptFile(home / WORK_FILE, WORKING, KeptWork)
    return keeper, Working(store=store, configured=configured, keeper=keeper, running=running)

"""Gives what a person sets for a node its files, and who keeps to it its children and counters."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from mesh.limits import LinkRates
from node.machine import Machine
from node.settings.config import Config
from node.work.keeper import Keeper
from node.work.limiting import LIMITS, Limiting, NodeLimits
from node.work.limits_files import KeptFile
from node.work.usage_files import Usage
from node.work.working import WORKING, ConfiguredWork, KeptWork, Working

WORK_FILE: Final = "work"
LIMITS_FILE: Final = "limits"


def limiting_of(
    config: Config,
    home: Path,
    use_rates: Callable[[LinkRates], None],
    use_slots: Callable[[int | None], None],
) -> Limiting:
    """Who holds the limits that a person sets."""
    return Limiting(
        store=KeptFile(home / LIMITS_FILE, LIMITS, NodeLimits),
        configured=config.transfer.rates,
        use_rates=use_rates,
        use_slots=use_slots,
    )


def keeping_of(
    config: Config, home: Path, machine: Machine, running: Callable[[], int]
) -> tuple[Keeper, Working]:
    """Who keeps to the rules, and who holds them; `running` counts attempts."""
    keeper = Keeper(children=machine.children, used_percent=Usage().percent)
    configured = ConfiguredWork(
        hours=config.schedule.hours,
        busy_percent=config.work.busy_percent,
        nice=config.work.nice,
        threads=config.work.threads,
    )
    store = KeptFile(home / WORK_FILE, WORKING, KeptWork)
    return keeper, Working(store=store, configured=configured, keeper=keeper, running=running)

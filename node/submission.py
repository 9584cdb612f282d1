"""What became of the paths of a submission."""

from dataclasses import dataclass

from ledger.commands import JobSpec
from node.gateway.models import PathFault


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Jobs in the order of the paths, and why other paths gave none."""

    jobs: tuple[JobSpec, ...]
    faults: tuple[PathFault, ...]

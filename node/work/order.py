"""What a worker has to do: one attempt with everything that it needs."""

from dataclasses import dataclass

from ledger.jobs import Attempt, Job, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One attempt with everything that it needs."""

    job: Job
    task: Task
    attempt: Attempt

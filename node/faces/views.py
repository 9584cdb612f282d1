"""Rows of the ledger as the faces show them: pure translation, no decisions."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ledger.device_slots import from_text
from ledger.jobs import Attempt, Job, Node, Task
from ledger.placing import labels_in, nodes_in
from ledger.queries import Reader
from ledger.seats import device_here
from node.gateway.device_models import SlotsInfo
from node.gateway.models import (
    AttemptInfo,
    Fault,
    JobDetail,
    JobSummary,
    Progress,
    ResultInfo,
    TaskInfo,
)
from node.work.progress import FilmProgress, ProgressBoard, together
from node.work.progress import Progress as Live

Names = Mapping[str, str]
"""Node id to name."""


def live_of(reader: Reader, board: ProgressBoard, job: str) -> Live | None:
    """The live progress of a job, all parts of its film together."""
    parts = board.of(job)
    frames = reader.film_frames(job) if parts else None
    if frames is None:
        return together(parts)
    finished = {attempt.task for attempt in reader.attempts(job, "finished")}
    leased = {a.id: a.task for a in reader.attempts(job, "leased") if a.task not in finished}
    return together(parts, FilmProgress(done=frames[0], total=frames[1], leased=leased))


def progress_view(live: Live | None, names: Names) -> Progress | None:
    """Live progress with the node's name."""
    if live is None:
        return None
    in_frames = live.phase in ("encoding", "verifying")
    done = max(0, live.frames if in_frames else live.bytes_done)
    total = max(0, live.frames_total if in_frames else live.bytes_total)
    rate = live.fps if in_frames else float(live.bytes_s)
    return Progress(
        job=live.job,
        attempt=live.attempt,
        node=names.get(live.node, live.node),
        phase=live.phase,
        done=done,
        total=total,
        fps=max(0.0, live.fps),
        speed=max(0.0, live.speed),
        bytes_s=max(0, live.bytes_s),
        left_s=int(max(0, total - done) / rate) if total and rate > 0 else None,
    )


def job_summary(
    job: Job, attempts: Sequence[Attempt], live: Live | None, names: Names
) -> JobSummary:
    """One line of the list of jobs."""
    return JobSummary(**_common(job, attempts, live, names))


def job_detail(
    job: Job,
    tasks: Sequence[Task],
    attempts: Sequence[Attempt],
    *,
    live: Live | None,
    names: Names,
    waiting: Sequence[str],
) -> JobDetail:
    """Everything about a job."""
    return JobDetail(
        **_common(job, attempts, live, names),
        source_digest=job.source_digest,
        probe=_object(job.probe_json),
        plan=_object(job.plan_json),
        tasks=[
            TaskInfo(
                id=task.id,
                kind=task.kind,
                state=task.state,
                needs=list(task.needs),
                cost=task.cost,
                attempts=[attempt_info(a, names) for a in attempts if a.task == task.id],
            )
            for task in tasks
        ],
        waiting=list(waiting),
        why_waiting="; ".join(waiting),
        needs=labels_in(job.place),
        on=[names.get(node, node) for node in nodes_in(job.place)],
    )


def attempt_info(attempt: Attempt, names: Names) -> AttemptInfo:
    """One run of a task."""
    command = _json(attempt.command_line)
    return AttemptInfo(
        id=attempt.id,
        number=attempt.number,
        node=names.get(attempt.node, attempt.node),
        state=attempt.state,
        device=attempt.device,
        encoder=attempt.encoder,
        ffmpeg=attempt.ffmpeg,
        command_line=[str(word) for word in command] if isinstance(command, list) else [],
        stderr_tail=attempt.stderr_tail,
        started_at_ms=attempt.started_at_ms or None,
        fetch_ms=attempt.fetch_ms,
        encode_ms=attempt.encode_ms,
        verify_ms=attempt.verify_ms,
        fetched_bytes=attempt.fetched_bytes,
        frames=attempt.frames,
        result_bytes=attempt.result_bytes,
        result_digest=attempt.result_digest,
        fault=_fault(
            attempt.error_code, attempt.error, attempt.todo, names.get(attempt.node, attempt.node)
        ),
    )


def _common(
    job: Job, attempts: Sequence[Attempt], live: Live | None, names: Names
) -> dict[str, Any]:
    working = [a for a in attempts if a.state == "leased"] or list(attempts[-1:])
    return {
        "id": job.id,
        "state": job.state,
        "source": job.source,
        "output": job.output,
        "profile": job.profile,
        "owner": names.get(job.owner, job.owner),
        "nodes": [names.get(a.node, a.node) for a in working],
        "tenant": job.tenant,
        "priority": job.priority,
        "source_bytes": job.source_bytes,
        "submitted_at_ms": job.created_at_ms,
        "finished_at_ms": job.finished_at_ms or None,
        "fault": _fault(job.error_code, job.error, job.todo, ""),
        "progress": None if job.is_final else progress_view(live, names),
        "result": _result(job, attempts, names),
    }


def _result(job: Job, attempts: Sequence[Attempt], names: Names) -> ResultInfo | None:
    accepted = next((a for a in reversed(attempts) if a.state == "accepted"), None)
    if job.state != "done" or accepted is None:
        return None
    facts = _object(accepted.result_json) or {}
    plan = _object(job.plan_json) or {}
    return ResultInfo(
        output=job.output,
        bytes=accepted.result_bytes,
        digest=accepted.result_digest,
        frames_in=_number(plan, "frames"),
        frames_out=_number(facts, "frames"),
        duration_ms=_number(facts, "duration_ms"),
        node=names.get(accepted.node, accepted.node),
        encoder=accepted.encoder,
        fetch_ms=accepted.fetch_ms,
        encode_ms=accepted.encode_ms,
        verify_ms=accepted.verify_ms,
        total_ms=max(0, (job.finished_at_ms or job.created_at_ms) - job.created_at_ms),
        vmaf=_score(facts.get("vmaf")),
    )


def _score(value: object) -> float | None:
    """A number from 0 to 100; another member wrote it."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= 100 else None


def _fault(code: str, what: str, todo: str, node: str) -> Fault | None:
    return Fault(code=code, what=what, todo=todo, node=node) if code else None


def _object(text: str) -> dict[str, Any] | None:
    value = _json(text)
    return value if isinstance(value, dict) else None


def _number(facts: Mapping[str, Any], name: str) -> int:
    value = facts.get(name, 0)
    return value if isinstance(value, int) else 0


def _json(text: str) -> Any:  # noqa: ANN401 - any JSON
    """JSON that another node wrote and the ledger's bounds may have cut; None when it is none."""
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def device_slots(node: Node, leases: Sequence[Attempt]) -> list[SlotsInfo]:
    """Slots and leases of each device of a node."""
    devices = from_text(node.device_slots)
    busy = Counter(device_here(attempt.device, devices) for attempt in leases)
    return [
        SlotsInfo(
            device=one.device,
            label=one.label,
            slots=one.slots,
            busy=busy[one.device],
            encoders=list(one.encoders),
        )
        for one in devices
    ]

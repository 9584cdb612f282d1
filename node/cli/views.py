"""What people see of the API's documents."""

import math
import shlex
import sys
from collections.abc import Sequence

from node.cli.faults import Json, print_json, safe
from node.cli.media_text import plan_lines, probe_lines
from node.cli.show import (
    counted,
    duration,
    fault_text,
    moment,
    print_block,
    print_pairs,
    print_table,
    progress_text,
    result_lines,
    size,
)

_STATES = {
    "looking": "looks for a mesh",
    "forming": "forms a mesh",
    "waiting": "waits to be admitted",
    "member": "member",
}


def print_fault(fault: Json) -> None:
    """Why a path gave no job."""
    line = fault_text(fault)
    if fault.get("path") and fault["path"] not in line:
        line = line.replace("]: ", f"]: {fault['path']}: ", 1)
    print(safe(line), file=sys.stderr)


def print_job_fault(job: Json) -> None:
    """Why a job did not end as done."""
    fault = job.get("fault") or {
        "code": "job_failed",
        "what": f"the job is {job['state']}",
        "todo": f"mesh-cli job show {job['id']}",
    }
    line = fault_text(fault)
    if job["source"] not in line:
        line = line.replace("]: ", f"]: {job['source']}: ", 1)
    print(safe(line), file=sys.stderr)


def print_submitted(answer: Json) -> None:
    """One line a job that was made, or would be."""
    for job in answer["jobs"]:
        likely = job.get("expected_bytes")
        sizes = f"  ({size(job['source_bytes'])}, likely {size(likely)})" if likely else ""
        made = job["id"] or "would convert"
        print(safe(f"{made}  {job['source']} -> {job['output']}{sizes if not job['id'] else ''}"))
    if answer.get("results"):
        print(safe(f"{counted(answer['results'], 'result')} of this mesh left out"))
    if answer["dry_run"]:
        known = [
            job["expected_bytes"] for job in answer["jobs"] if job["expected_bytes"] is not None
        ]
        total = size(sum(job["source_bytes"] for job in answer["jobs"]))
        likely = f", likely to {size(sum(known))}" if known else ""
        print(
            safe(
                f"{counted(len(answer['jobs']), 'film')} of {total}{likely}; nothing was submitted"
            )
        )


def print_status(status: Json) -> None:
    """The mesh in one look."""
    counts = ", ".join(f"{count} {state}" for state, count in status["jobs"].items() if count)
    coordinator = status["coordinator"] or "none"
    quorum = "" if status["quorum"] else " (no quorum: nothing new is decided)"
    print_pairs(
        [
            ("node", f"{status['node']} ({_STATES[status['state']]})"),
            ("mesh", status["mesh"]),
            ("join code", status["join_code"]),
            ("coordinator", f"{coordinator}{quorum}" if status["mesh"] else None),
            ("nodes", f"{status['nodes_alive']} of {status['nodes_total']} alive"),
            ("voters", ", ".join(status["voters"])),
            ("learners", ", ".join(status["learners"])),
            ("jobs", counts or "none"),
            ("version", status["version"]),
        ]
    )
    for progress in status["running"]:
        print(safe(f"  {progress['job']}: {progress_text(progress)} on {progress['node']}"))
    if status["open"]:
        print("open: every node on this network is admitted without asking")
    if status["unprotected"]:
        print("unprotected: what is decided now is held by one machine alone")
    for backup in status.get("backups", ()):
        print(safe(f"{backup['kind']}: {_backup_text(backup)}"))
    for note in status["notes"]:
        print(safe(note))


def _backup_text(backup: Json) -> str:
    target = backup["target"]
    if backup["fault"]:
        since = f"; complete to entry {backup['index']}" if backup["done_at_ms"] else ""
        return f"{fault_text(backup['fault'])}{since}"
    if not backup["here"]:
        return f"{target}, written where the coordinator is"
    if not backup["done_at_ms"]:
        return f"{target}, the first one is not done yet"
    drilled = f", drilled {moment(at)}" if (at := backup["drilled_at_ms"]) else ""
    done = moment(backup["done_at_ms"])
    return f"{target} holds everything up to entry {backup['index']}, {done}{drilled}"


def print_nodes(answer: Json) -> None:
    """Members, and below them who asks to join."""
    rows: list[list[object]] = []
    closed: list[tuple[str, str]] = []
    for node in answer["nodes"]:
        marks = [node["vote"] if node["vote"] != "none" else ""]
        marks += ["coordinator"] if node["coordinator"] else []
        marks += ["this node"] if node["this"] else []
        state = "alive" if node["alive"] else "silent"
        closed += [(node["name"], node["closed"])] if node.get("closed") else []
        state = state if node["state"] == "member" else node["state"]
        rows.append(
            [
                node["name"],
                state,
                node["role"],
                ", ".join(mark for mark in marks if mark),
                f"{node['slots_busy']}/{node['slots']}",
                len(node["encoders"]),
                " ".join(node["addresses"]),
                size(node["sent_bytes"]),
                size(node["received_bytes"]),
            ]
        )
    names = ("NAME", "STATE", "ROLE", "IS", "SLOTS", "ENCODERS", "ADDRESS", "SENT", "RECEIVED")
    print_table(names, rows)
    for name, why in closed:
        print(safe(f"{name} {why}"))
    for node in answer["nodes"]:
        if node.get("labels"):
            print(safe(f"{node['name']} has the labels {', '.join(node['labels'])}"))
        # A machine with a processor alone has told all in its line.
        for one in node.get("devices", []) if len(node.get("devices", [])) > 1 else []:
            what = f"{one['device']} ({one['label']})"
            print(safe(f"{node['name']} {what}: {one['busy']}/{one['slots']}"))
    if answer["pending"]:
        print("\nThese ask to join (mesh-cli nodes approve NAME):")
        pending = [
            [one["name"], one["code"], one["address"], one["id"]] for one in answer["pending"]
        ]
        print_table(("NAME", "CODE", "ADDRESS", "ID"), pending)


def print_jobs(jobs: list[Json], cursor: str | None) -> None:
    """One line a job."""
    rows = [
        [
            job["id"],
            job["state"],
            progress_text(job["progress"]),
            job["profile"],
            ", ".join(job["nodes"]),
            moment(job["submitted_at_ms"]),
            job["source"],
        ]
        for job in jobs
    ]
    print_table(("ID", "STATE", "PROGRESS", "PROFILE", "NODE", "SUBMITTED", "SOURCE"), rows)
    if cursor is not None:
        print("there are more: give a larger --limit", file=sys.stderr)


def print_job(job: Json) -> None:
    """Everything about a job."""
    print_pairs(
        [
            ("job", job["id"]),
            ("state", job["state"]),
            ("progress", progress_text(job["progress"])),
            ("source", f"{job['source']} ({size(job['source_bytes'])}) on {job['owner']}"),
            ("output", job["output"]),
            ("profile", job["profile"]),
            ("priority", job["priority"]),
            ("tenant", job["tenant"]),
            ("needs", ", ".join(job.get("needs") or [])),
            ("only on", ", ".join(job.get("on") or [])),
            ("submitted", moment(job["submitted_at_ms"])),
            ("finished", moment(job["finished_at_ms"])),
            ("source digest", job["source_digest"]),
        ]
    )
    if waiting := job.get("waiting") or [job["why_waiting"]] * bool(job["why_waiting"]):
        print_block("waits because", waiting)
    if job["probe"]:
        print_block("holds", probe_lines(job["probe"]))
    if job["plan"]:
        print_block("becomes", plan_lines(job["plan"]))
    if job["result"]:
        print(*map(safe, result_lines(job)), sep="\n")
    if job["fault"]:
        print(safe(fault_text(job["fault"])))
    for task in job["tasks"]:
        print(safe(f"task {task['id']} ({task['kind']}): {task['state']}"))
        for attempt in task["attempts"]:
            # Of a film in hundreds of pieces only what went wrong is worth its command line.
            well = task["kind"] in ("chunk", "audio") and not attempt["fault"]
            _print_attempt(attempt, brief=well)


def _print_attempt(attempt: Json, *, brief: bool) -> None:
    took = f"fetch {duration(attempt['fetch_ms'])}, encode {duration(attempt['encode_ms'])}"
    print(
        safe(
            f"  attempt {attempt['number']} on {attempt['node']}{_at(attempt)}: {attempt['state']}; {took},"
            f" verify {duration(attempt['verify_ms'])}; {attempt['frames']} frames"
        )
    )
    if attempt["fault"]:
        print(safe(f"    {fault_text(attempt['fault'])}"))
    if brief:
        return
    if attempt["command_line"]:
        print(safe(f"    {shlex.join(attempt['command_line'])}"))
    for line in attempt["stderr_tail"].splitlines():
        print(safe(f"    | {line}"))


def _at(attempt: Json) -> str:
    device, encoder = attempt.get("device", ""), attempt["encoder"]
    return f" ({', '.join(filter(None, (device, encoder)))})" if device or encoder else ""


def print_detection(found: Json) -> None:
    """Devices, and which encoders work and why others do not."""
    print_pairs(
        [
            ("ffmpeg", found["ffmpeg"] or "none found"),
            ("version", found["ffmpeg_version"]),
            ("passed over", found["ffmpeg_note"]),
            ("devices", found["devices_note"]),
            ("cpus", found["cpus"]),
            ("platform", found["platform"]),
        ]
    )
    devices = [[one["kind"], one["name"], one["detail"]] for one in found["devices"]]
    if devices:
        print_table(("KIND", "DEVICE", "DETAIL"), devices)
    works = {True: "works", False: "does not work", None: "candidate"}
    encoders = [
        [
            one["name"],
            one["family"],
            works[one["works"]],
            f"{one['fps']:.0f} fps" if one.get("fps") else "",
            one["reason"] or ", ".join(one.get("devices", [])),
        ]
        for one in found["encoders"]
    ]
    print_table(("ENCODER", "FAMILY", "HERE", "AT 720p", "DEVICES, OR WHY NOT"), encoders)


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[object]], *, as_json: bool) -> None:
    """The answer of a query; bytes are shown in hexadecimal, what JSON has no number for as a text."""
    plain = [[_plain(cell) for cell in row] for row in rows]
    if as_json:
        print_json({"columns": list(columns), "rows": plain})
    else:
        print_table(columns, plain)


def _plain(cell: object) -> object:
    if isinstance(cell, float) and not math.isfinite(cell):
        return str(cell)
    return cell.hex() if isinstance(cell, bytes) else cell

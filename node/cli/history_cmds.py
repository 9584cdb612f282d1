"""`mesh-cli job history`, `job logs`, `stats`: what was done, by whom, and how it ended."""

import shlex
from threading import Event as Pause
from typing import Final

import click

from node.cli.client import Api, api_of, segment
from node.cli.faults import Json, print_json
from node.cli.faults import safe as safe_text
from node.cli.options import Since, common_options
from node.cli.show import duration, fault_text, moment, print_table, progress_text, size

LOOK_S: Final = 1.0
"""Between two looks at a job whose log is followed."""
_FINAL: Final = ("done", "failed", "cancelled")


@click.command("history")
@click.argument("job_id", metavar="ID")
@common_options
@click.pass_context
def job_history(ctx: click.Context, *, job_id: str, as_json: bool) -> int:
    """Everything that happened to a job, line by line, and how each attempt ended."""
    answer = api_of(ctx).get(f"/jobs/{segment(job_id)}/history")
    if as_json:
        print_json(answer)
        return 0
    print(safe_text(f"{answer['id']}  {answer['state']}  {answer['source']}"))
    for line in answer["lines"]:
        print(_line_text(line))
    for attempt in answer["attempts"]:
        print(_attempt_text(attempt))
    return 0


@click.command("logs")
@click.argument("job_id", metavar="ID")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job is over.")
@common_options
@click.pass_context
def job_logs(ctx: click.Context, *, job_id: str, follow: bool, as_json: bool) -> int:
    """Command lines of a job's attempts and the ends of what FFmpeg said; --follow tells progress too."""
    api, path = api_of(ctx), f"/jobs/{segment(job_id)}"
    if as_json and not follow:
        print_json({"attempts": api.get(f"{path}/history")["attempts"]})
        return 0
    return _follow(api, path, once=not follow, as_json=as_json)


def _follow(api: Api, path: str, *, once: bool, as_json: bool) -> int:
    told: set[str] = set()
    lines = 0
    while True:
        story = api.get(f"{path}/history")
        if not once and not as_json:
            for line in story["lines"][lines:]:
                print(_line_text(line), flush=True)
            lines = len(story["lines"])
        for attempt in story["attempts"]:
            if attempt["id"] not in told and attempt["state"] != "leased":
                told.add(attempt["id"])
                print_json(attempt) if as_json else _print_log(attempt)
        if once or story["state"] in _FINAL:
            return 0 if once or story["state"] == "done" else 1
        if not as_json and (now := progress_text(api.get(path)["progress"])):
            print(safe_text(f"  {now}"), flush=True)
        Pause().wait(LOOK_S)


def _line_text(line: Json) -> str:
    where = f" on {line['node']}" if line["node"] else ""
    what = f": {line['what']}" if line["what"] else ""
    return safe_text(f"{moment(line['at_ms'])}  {line['kind'].removeprefix('job.')}{where}{what}")


def _attempt_text(attempt: Json) -> str:
    took = f"fetch {duration(attempt['fetch_ms'])}, encode {duration(attempt['encode_ms'])}"
    text = f"attempt {attempt['number']} on {attempt['node']}: {attempt['state']}; {took}"
    if attempt["encoder"]:
        text += f"; {attempt['encoder']}, FFmpeg {attempt['ffmpeg']}"
    return safe_text(f"{text}; {fault_text(attempt['fault'])}" if attempt["fault"] else text)


def _print_log(attempt: Json) -> None:
    print(_attempt_text(attempt))
    if attempt["command_line"]:
        print(safe_text(f"  {shlex.join(attempt['command_line'])}"))
    for line in attempt["stderr_tail"].splitlines():
        print(safe_text(f"  | {line}"))


@click.command()
@click.option("--since", type=Since(), metavar="T", help="Only since: 2h, 1d or 2026-11-24.")
@common_options
@click.pass_context
def stats(ctx: click.Context, *, since: int | None, as_json: bool) -> int:
    """What was done: by node, by profile, by day."""
    answer = api_of(ctx).get("/stats", since_ms=since)
    if as_json:
        print_json(answer)
        return 0
    for title in ("nodes", "profiles", "days"):
        rows = [
            [
                one["name"],
                one["good"],
                one["bad"],
                one["frames"],
                one["fps"],
                duration(one["encode_ms"]),
                size(one["fetched_bytes"]),
                size(one["result_bytes"]),
            ]
            for one in answer[title]
        ]
        name = title.removesuffix("s").upper()
        print_table((name, "GOOD", "BAD", "FRAMES", "FPS", "ENCODED", "FETCHED", "RESULTS"), rows)
    return 0

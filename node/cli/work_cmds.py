"""`mesh-cli cancel`, `retry`, `priority`: one thing done to many jobs."""

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from mesh.errors import UsageError
from node.cli.client import Api, api_of, segment
from node.cli.faults import Json, print_json
from node.cli.faults import safe as safe_text
from node.cli.history_cmds import job_history, job_logs, stats
from node.cli.options import STATES, Duration, Since, common_options, given
from node.cli.show import counted
from node.cli.tenant_cmds import tenants
from node.cli.watch_cmds import watch

F = TypeVar("F", bound=Callable[..., Any])
LOOK_S: Final = 0.2
"""Between two looks at an order that is being carried out."""
_DONE: Final = {"cancel": "cancelled", "retry": "queued again", "priority": "changed"}


def choosing(command: F) -> F:
    """The options that choose jobs; all conditions together."""
    for option in reversed(
        (
            click.option("--all", "all_jobs", is_flag=True, help="Every job of the mesh."),
            click.option(
                "--status",
                type=click.Choice(STATES),
                multiple=True,
                help="In this state; may be repeated.",
            ),
            click.option(
                "--folder",
                metavar="DIR",
                callback=given,
                help="Whose films lie in this folder or below, on their owner's machine.",
            ),
            click.option(
                "--node", callback=given, help="Of this node (name or id), as owner or worker."
            ),
            click.option("--profile", "-p", callback=given, help="With this profile."),
            click.option("--tenant", callback=given, help="Of this tenant."),
            click.option(
                "--since", type=Since(), metavar="T", help="Submitted since: 2h, 1d or 2026-11-24."
            ),
            click.option("--until", type=Since(), metavar="T", help="Submitted before."),
            click.option("--no-wait", is_flag=True, help="Do not wait until it is carried out."),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@choosing
@common_options
@click.pass_context
def cancel(ctx: click.Context, /, *, ids: tuple[str, ...], as_json: bool, **chosen: Any) -> int:  # noqa: ANN401 - click's options
    """Cancel jobs, running ones too: by id, or all that are chosen by options."""
    return _change(ctx, "cancel", ids, chosen, as_json=as_json)


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--failed", is_flag=True, help="Those that failed.")
@choosing
@common_options
@click.pass_context
def retry(
    ctx: click.Context,
    /,
    *,
    ids: tuple[str, ...],
    failed: bool,
    as_json: bool,
    **chosen: Any,  # noqa: ANN401 - click's options
) -> int:
    """Queue jobs once more that failed or were cancelled."""
    if failed:
        chosen["status"] = (*chosen["status"], "failed")
    return _change(ctx, "retry", ids, chosen, as_json=as_json)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("ids", metavar="[ID]... N", nargs=-1, required=True)
@choosing
@common_options
@click.pass_context
def priority(ctx: click.Context, /, *, ids: tuple[str, ...], as_json: bool, **chosen: Any) -> int:  # noqa: ANN401 - click's options
    """Give jobs another priority N, -100 to 100: higher goes first; `mesh-cli priority ID 50`."""
    *jobs, number = ids
    try:
        wanted = int(number)
    except ValueError:
        raise UsageError(f"{number!r} is no priority", "mesh-cli priority ID 50") from None
    return _change(ctx, "priority", tuple(jobs), chosen, as_json=as_json, number=wanted)


def _change(
    ctx: click.Context,
    action: str,
    ids: tuple[str, ...],
    chosen: dict[str, Any],
    *,
    as_json: bool,
    number: int = 0,
) -> int:
    api = api_of(ctx)
    conditions = _conditions(chosen)
    wanted = bool(conditions) or chosen["all_jobs"]
    if bool(ids) == wanted:
        raise UsageError(
            "give ids, or say which jobs" if not ids else "give ids or conditions, not both",
            f"mesh-cli {action} --help names the options; --all means every job",
        )
    body: Json = {"action": action, "priority": number}
    answer = api.post(
        "/jobs/change", body | ({"jobs": list(ids)} if ids else {"chosen": conditions})
    )
    if answer["order"] is not None and not chosen["no_wait"]:
        answer["order"] = _carried_out(api, answer["order"])
    if as_json:
        print_json(answer)
    else:
        _print(answer, action)
    return 1 if answer["unchanged"] else 0


def _conditions(chosen: dict[str, Any]) -> Json:
    named: Json = {
        "states": list(chosen["status"]),
        "folder": chosen["folder"] or "",
        "node": chosen["node"] or "",
        "profile": chosen["profile"] or "",
        "tenant": chosen["tenant"] or "",
        "since_ms": chosen["since"] or 0,
        "until_ms": chosen["until"] or 0,
    }
    return {name: value for name, value in named.items() if value}


def _carried_out(api: Api, order: Json) -> Json:
    while not order["done"]:
        time.sleep(LOOK_S)
        order = api.get(f"/orders/{order['id']}")
    return order


def _print(answer: Json, action: str) -> None:
    for job in answer["changed"]:
        print(safe_text(f"{job}  {_DONE[action]}"))
    for one in answer["unchanged"]:
        print(safe_text(f"{one['id']}  left as it is: {one['what']}"))
    if (order := answer["order"]) is not None:
        how = "" if order["done"] else f" so far; order {order['id']} goes on"
        left = f", {order['skipped']} left as they were" if order["skipped"] else ""
        print(safe_text(f"{counted(order['changed'], 'job')} {_DONE[action]}{left}{how}"))


def _work(ctx: click.Context, name: str, *, as_json: bool, **wanted: object) -> Json:
    """Tells a node how to work, prints what holds now."""
    body = {key: value for key, value in wanted.items() if value is not None}
    answer = api_of(ctx).post(f"/nodes/{segment(name)}/work", body)
    if as_json:
        print_json(answer)
        return answer
    works = answer["closed"] or "takes work"
    print(safe_text(f"{answer['name']} {works}; {answer['running']} running"))
    return answer


@click.command()
@click.argument("name")
@common_options
@click.pass_context
def pause(ctx: click.Context, *, name: str, as_json: bool) -> int:
    """Let a node stand still: FFmpeg too, which goes on later where it was."""
    _work(ctx, name, as_json=as_json, paused=True)
    return 0


@click.command()
@click.argument("name")
@common_options
@click.pass_context
def resume(ctx: click.Context, *, name: str, as_json: bool) -> int:
    """Let a node work again after `pause` or `drain`."""
    _work(ctx, name, as_json=as_json, paused=False, draining=False)
    return 0


@click.command()
@click.argument("name")
@click.option("--within", type=Duration(), metavar="T", help="Give back then what still runs.")
@common_options
@click.pass_context
def drain(ctx: click.Context, *, name: str, within: int | None, as_json: bool) -> int:
    """Let a node finish what runs and take nothing new; it hands over lead and vote, and stays a member."""
    _work(ctx, name, as_json=as_json, draining=True, finish_s=within)
    return 0


@click.command()
@click.argument("name")
@click.option(
    "--hours",
    multiple=True,
    metavar="HOURS",
    help="When it works: 'mon-fri 22:00-06:00', always, default; may be repeated.",
)
@click.option(
    "--nice",
    type=click.IntRange(-1, 19),
    metavar="N",
    help="FFmpeg's priority, 0 to 19; -1: default.",
)
@click.option(
    "--threads",
    type=click.IntRange(-1),
    metavar="N",
    help="Threads of one FFmpeg; 0: as it likes, -1: default.",
)
@click.option(
    "--busy",
    type=click.IntRange(-1, 100),
    metavar="PERCENT",
    help="Step back while others use more of the processors; 0: never, -1: default.",
)
@click.option(
    "--gpu",
    type=click.IntRange(-1, 100),
    metavar="PERCENT",
    help="Step back while others use more of a graphics chip (NVIDIA); 0: never, -1: default.",
)
@click.option(
    "--memory",
    type=click.IntRange(-1),
    metavar="MIB",
    help="Memory of one FFmpeg at most (Linux); 0: as films need, -1: default.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="LABEL",
    help="What jobs can ask for (`submit --needs`): all labels of the node, none, or default.",
)
@common_options
@click.pass_context
def work(
    ctx: click.Context,
    *,
    name: str,
    hours: tuple[str, ...],
    nice: int | None,
    threads: int | None,
    busy: int | None,
    gpu: int | None,
    memory: int | None,
    labels: tuple[str, ...],
    as_json: bool,
) -> int:
    """When and how a node works; without options: what holds now.  Holds at once and over restarts."""
    answer = _work(
        ctx,
        name,
        as_json=as_json,
        hours=list(hours) or None,
        nice=nice,
        threads=threads,
        busy_percent=busy,
        gpu_percent=gpu,
        memory_mib=memory,
        labels=list(labels) or None,
    )
    if not as_json:
        print(safe_text(_kept(answer)))
    return 0


def _kept(answer: Json) -> str:
    """How a node works, in a line."""
    limits = {"the processors": answer["busy_percent"], "a chip": answer["gpu_percent"]}
    above = [f"{limit} % of {what}" for what, limit in limits.items() if limit]
    memory = f"{answer['memory_mib']} MiB each" if answer["memory_mib"] else "as films need"
    told = {
        "hours": ", ".join(answer["hours"]) or "always",
        "nice": answer["nice"],
        "threads": answer["threads"] or "free",
        "memory": memory,
        "steps back": f"when others use {' or '.join(above)}" if above else "never",
        "labels": ", ".join(answer["labels"]) or "none",
    }
    return "; ".join(f"{what}: {how}" for what, how in told.items())


@click.command("release")
@click.argument("name")
@common_options
@click.pass_context
def release(ctx: click.Context, *, name: str, as_json: bool) -> int:
    """Give a node work again that was quarantined for its failures."""
    answer = api_of(ctx).post(f"/nodes/{segment(name)}/release")
    print_json(answer) if as_json else print(safe_text(f"{answer['name']} gets work again"))
    return 0


def add_work_commands(cli: click.Group, nodes: click.Group, job: click.Group) -> None:
    """Adds them to `mesh-cli` and to its groups of nodes and of one job."""
    for command in (job_history, job_logs):
        job.add_command(command)
    for command in (cancel, retry, priority, stats, watch, tenants):
        cli.add_command(command)
    for command in (pause, resume, drain, work, release):
        nodes.add_command(command)

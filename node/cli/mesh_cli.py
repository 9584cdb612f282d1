"""`mesh-cli`: what a person asks of the mesh, over HTTP to a node."""

import sys
from typing import Any

import click

from mesh.errors import EXIT_JOB_FAILED, EXIT_USAGE, ConflictError, NotFoundError, UsageError
from mesh.limits import rate_text
from node.cli import views
from node.cli.client import Api, api_of, home_of, segment
from node.cli.faults import (
    Commands,
    Json,
    StoppedWatchingError,
    error_from,
    main_of,
    print_error,
    print_json,
)
from node.cli.faults import safe as safe_text
from node.cli.film_options import film_options, submission
from node.cli.ledger_cmds import ledger
from node.cli.options import (
    STATES,
    Common,
    DeviceSlots,
    Duration,
    Rate,
    Since,
    common_options,
    given,
)
from node.cli.profile_cmds import profiles
from node.cli.work_cmds import add_work_commands
from node.settings.config_text import ConfigFault, ConfigFaultsError

_consistent = click.option(
    "--consistent",
    is_flag=True,
    help="Everything acknowledged anywhere before; needs a coordinator. Else: what this node knows.",
)


def _asked(*, consistent: bool) -> str | None:
    return "true" if consistent else None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="darkstream", prog_name="mesh-cli")
@common_options
def cli(*, as_json: bool) -> None:
    """Convert videos on a mesh of machines.  Talks to the node on this machine."""


def _report_faults(faults: list[Json]) -> int:
    """Prints why paths gave no job; the exit code of the first."""
    for fault in faults:
        views.print_fault(fault)
    if not faults:
        return 0
    first = faults[0]
    return error_from(first["code"], first["what"], first["todo"]).exit_code


@cli.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, callback=given)
@film_options
@common_options
@click.pass_context
def convert(
    ctx: click.Context,
    /,
    *,
    files: tuple[str, ...],
    as_json: bool,
    **wanted: Any,  # noqa: ANN401 - the options of `film_options`
) -> int:
    """Convert films and wait for the results, with live progress."""
    from node.cli.displays import display_for, print_results  # noqa: PLC0415 - start-up time
    from node.cli.follow import Follower  # noqa: PLC0415 - start-up time

    api = api_of(ctx)
    answer = api.post("/jobs", submission(files, **wanted))
    ids = [job["id"] for job in answer["jobs"]]
    display = display_for(as_json=as_json)
    try:
        ended = Follower(api, display).follow(ids)
    except KeyboardInterrupt:
        display.close()
        raise StoppedWatchingError(
            "stopped watching", f"the jobs go on: mesh-cli jobs shows them ({len(ids)} submitted)"
        ) from None
    finally:
        display.close()
    jobs = [api.get(f"/jobs/{job}") for job in ended]
    if as_json:
        print_json({"jobs": jobs, "faults": answer["faults"]})
    else:
        print_results(jobs)
    code = _report_faults(answer["faults"])
    failed = [job for job in jobs if job["state"] != "done"]
    for job in failed:
        views.print_job_fault(job)
    return EXIT_JOB_FAILED if failed else code


@cli.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, callback=given)
@film_options
@click.option("--priority", type=click.IntRange(-100, 100), default=0, help="Higher goes first.")
@click.option("--tenant", default="", help="On whose account.")
@click.option("--once", is_flag=True, help="Leave out films whose content is converted already.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and to how many bytes.")
@common_options
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    *,
    paths: tuple[str, ...],
    as_json: bool,
    **wanted: Any,  # noqa: ANN401 - the options of `film_options`; priority, tenant, dry_run go on as they are
) -> int:
    """Submit films and folders; prints the ids of the jobs."""
    answer = api_of(ctx).post("/jobs", submission(paths, **wanted))
    if as_json:
        print_json(answer)
    else:
        views.print_submitted(answer)
    return _report_faults(answer["faults"])


@cli.command()
@_consistent
@common_options
@click.pass_context
def status(ctx: click.Context, *, consistent: bool, as_json: bool) -> int:
    """The mesh in one look."""
    answer = api_of(ctx).get("/status", consistent=_asked(consistent=consistent))
    print_json(answer) if as_json else views.print_status(answer)
    return 0


@cli.command()
@click.option("--status", type=click.Choice(STATES), help="Only jobs in this state.")
@click.option("--node", help="Only jobs of this node (name or id).")
@click.option("--since", type=Since(), metavar="T", help="Only jobs since: 2h, 1d or 2026-11-24.")
@click.option("--until", type=Since(), metavar="T", help="Only jobs before.")
@click.option("--profile", "-p", help="Only jobs with this profile.")
@click.option("--folder", metavar="DIR", help="Only jobs whose films lie in this folder or below.")
@click.option("--tenant", help="Only jobs of this tenant.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)
@_consistent
@common_options
@click.pass_context
def jobs(
    ctx: click.Context,
    /,
    *,
    status: str | None,
    node: str | None,
    since: int | None,
    limit: int,
    consistent: bool,
    as_json: bool,
    **more: str | int | None,
) -> int:
    """Jobs, newest first."""
    api = api_of(ctx)
    found: list[Json] = []
    cursor: str | None = None
    while True:
        page = api.get(
            "/jobs",
            status=status,
            node=node,
            since_ms=since,
            until_ms=more["until"],
            profile=more["profile"],
            folder=more["folder"],
            tenant=more["tenant"],
            limit=min(limit - len(found), 1_000),
            cursor=cursor,
            consistent=_asked(consistent=consistent and cursor is None),
        )
        found += page["jobs"]
        cursor = page["next"]
        if cursor is None or len(found) >= limit:
            break
    print_json({"jobs": found, "next": cursor}) if as_json else views.print_jobs(found, cursor)
    return 0


@cli.group(cls=Commands)
def job() -> None:
    """One job."""


@job.command("show")
@click.argument("job_id", metavar="ID")
@_consistent
@common_options
@click.pass_context
def job_show(ctx: click.Context, *, job_id: str, consistent: bool, as_json: bool) -> int:
    """A job's state, tasks and attempts, and why it waits."""
    path = f"/jobs/{segment(job_id)}"
    answer = api_of(ctx).get(path, consistent=_asked(consistent=consistent))
    print_json(answer) if as_json else views.print_job(answer)
    return 0


@job.command("restore")
@click.argument("job_id", metavar="ID")
@common_options
@click.pass_context
def job_restore(ctx: click.Context, *, job_id: str, as_json: bool) -> int:
    """Bring the original back that the result of a job with --replace took the place of."""
    answer = api_of(ctx).post(f"/jobs/{segment(job_id)}/restore", {})
    if as_json:
        print_json(answer)
    else:
        print(safe_text(f"{answer['source']} is the original again"))
        print(safe_text(f"the result lies at {answer['result']}"))
    return 0


@cli.group(cls=Commands, invoke_without_command=True)
@common_options
@click.pass_context
def nodes(ctx: click.Context, *, as_json: bool) -> int:
    """The nodes of the mesh, and those that ask to join."""
    if ctx.invoked_subcommand is not None:
        return 0
    answer = _all_nodes(api_of(ctx))
    print_json(answer) if as_json else views.print_nodes(answer)
    return 0


def _all_nodes(api: Api) -> Json:
    answer = api.get("/nodes")
    page = answer
    while page["next"] is not None:
        page = api.get("/nodes", cursor=page["next"])
        answer["nodes"] += page["nodes"]
    return {**answer, "next": None}


@nodes.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask whether the codes are the same.")
@click.option(
    "--code",
    metavar="DIGITS",
    callback=given,
    help="The code that the new node shows; else you compare.",
)
@common_options
@click.pass_context
def approve(ctx: click.Context, *, name: str, yes: bool, code: str | None, as_json: bool) -> int:
    """Admit a node that asks to join; compare its six-digit code with what the new node shows."""
    api = api_of(ctx)
    asking = [one for one in api.get("/nodes")["pending"] if name in (one["name"], one["id"])]
    if not asking:
        raise NotFoundError(f"no node {name!r} asks to join", "mesh-cli nodes lists those that do")
    if len(asking) > 1:
        ids = ", ".join(one["id"] for one in asking)
        raise ConflictError(f"several nodes named {name!r} ask to join: {ids}", "give the id")
    (pending,) = asking
    if not as_json:
        print(
            safe_text(
                f"{pending['name']} at {pending['address']} shows the code: {pending['code']}"
            )
        )
    if sys.stdin.isatty() and not (yes or code or as_json):
        click.confirm("Does the new node show the same code?", abort=True, err=True)
    answer = api.post(f"/nodes/{segment(pending['id'])}/approve", {"code": code or pending["code"]})
    print_json(answer) if as_json else print(safe_text(f"{answer['name']} is admitted"))
    return 0


@nodes.command()
@click.argument("name")
@common_options
@click.pass_context
def revoke(ctx: click.Context, *, name: str, as_json: bool) -> int:
    """Distrust a node for good: its key is refused from now on."""
    answer = api_of(ctx).post(f"/nodes/{segment(name)}/revoke")
    print_json(answer) if as_json else print(safe_text(f"{answer['name']} is revoked"))
    return 0


@nodes.command()
@click.argument("name")
@common_options
@click.pass_context
def remove(ctx: click.Context, *, name: str, as_json: bool) -> int:
    """Let a node go for good: it hands over its vote and its work, and stops; it may join anew."""
    answer = api_of(ctx).post(f"/nodes/{segment(name)}/remove")
    print_json(answer) if as_json else print(safe_text(f"{answer['name']} is removed"))
    return 0


@nodes.command()
@click.argument("name")
@click.option("--slots", type=click.IntRange(-1), metavar="N", help="Films at once; -1: default.")
@click.option("--up", type=Rate(), metavar="R", help="Sends at most so fast: 20MB/s, off, default.")
@click.option("--down", type=Rate(), metavar="R", help="Receives at most so fast.")
@click.option(
    "--device",
    "devices",
    type=DeviceSlots(),
    multiple=True,
    metavar="NAME=N",
    help="Films at once on one device (cpu, gpu0: see `mesh-cli nodes`); -1: default.",
)
@click.option("--link", metavar="OTHER", help="The rates hold for films to and from OTHER alone.")
@common_options
@click.pass_context
def limit(
    ctx: click.Context,
    *,
    name: str,
    slots: int | None,
    up: int | None,
    down: int | None,
    link: str | None,
    devices: tuple[tuple[str, int], ...],
    as_json: bool,
) -> int:
    """How much a node does for others; holds at once, for what runs too, and over restarts."""
    body = {"slots": slots, "up": up, "down": down, "link": link, "devices": dict(devices)}
    if slots is None and up is None and down is None and not devices:
        raise UsageError("nothing to change", "give --slots, --device, --up or --down")
    answer = api_of(ctx).post(f"/nodes/{segment(name)}/limit", body)
    if as_json:
        print_json(answer)
        return 0
    where = f" with {link}" if link else ""
    slots_text = "as configured" if answer["slots"] is None else answer["slots"]
    rates = f"up {rate_text(answer['up'])}, down {rate_text(answer['down'])}"
    said = "".join(f", {device} {number}" for device, number in answer["devices"].items())
    print(safe_text(f"{answer['name']}{where}: {rates}, slots {slots_text}{said}"))
    return 0


@cli.group(cls=Commands)
def token() -> None:
    """Invitations for new nodes."""


@token.command("create")
@click.option("--uses", type=click.IntRange(1, 1_000), default=1, show_default=True)
@click.option("--ttl", type=Duration(), metavar="T", default="1h", show_default=True)
@common_options
@click.pass_context
def token_create(ctx: click.Context, *, uses: int, ttl: int, as_json: bool) -> int:
    """Make an invitation; prints the token alone, for `mesh-node start --join TOKEN`."""
    answer = api_of(ctx).post("/tokens", {"uses": uses, "ttl_s": ttl})
    print_json(answer) if as_json else print(answer["token"])
    return 0


@cli.command()
@common_options
@click.pass_context
def detect(ctx: click.Context, *, as_json: bool) -> int:
    """What the node's machine can encode with."""
    answer = api_of(ctx).get("/detect")
    print_json(answer) if as_json else views.print_detection(answer)
    return 0


@cli.command()
@click.argument("file")
@common_options
@click.pass_context
def validate(ctx: click.Context, *, file: str, as_json: bool) -> int:
    """Check a configuration file as the node's version reads it: every fault at once, with its line."""
    from node.settings.config_files import read_config_file  # noqa: PLC0415 - start-up time

    path, text = read_config_file({}, {}, file, default_home=home_of(ctx.ensure_object(Common)))
    answer = api_of(ctx).post("/validate", {"text": text, "file": str(path)})
    if as_json:
        print_json(answer)
    elif answer["ok"]:
        print(safe_text(f"{path}: no faults"))
    if not answer["ok"]:
        print_error(_faults_told(answer["faults"]))
    return 0 if answer["ok"] else EXIT_USAGE


def _faults_told(faults: list[Json]) -> ConfigFaultsError:
    return ConfigFaultsError(
        [
            ConfigFault(one["file"], *(one[k] for k in ("line", "key", "what", "todo")))
            for one in faults
        ]
    )


cli.add_command(ledger)
cli.add_command(profiles)
add_work_commands(cli, nodes, job)


main = main_of(cli)

if __name__ == "__main__":
    main()

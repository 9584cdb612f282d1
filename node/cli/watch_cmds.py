"""`mesh-cli watch`: folders whose films are converted as they appear."""

from typing import Any

import click

from node.cli.client import api_of, segment
from node.cli.faults import Commands, Json, print_json
from node.cli.faults import safe as safe_text
from node.cli.film_options import film_options, submission
from node.cli.options import Duration, common_options, given
from node.cli.show import print_table


@click.group(cls=Commands)
def watch() -> None:
    """Folders whose films are converted as they appear."""


@watch.command("add")
@click.argument("folder", metavar="DIR", callback=given)
@film_options
@click.option("--priority", type=click.IntRange(-100, 100), default=0, help="Higher goes first.")
@click.option("--tenant", default="", help="On whose account.")
@click.option("--extensions", metavar="LIST", help="Instead of those of videos: mkv,mp4.")
@click.option(
    "--include",
    metavar="PATTERN",
    multiple=True,
    help="Only paths like 'shows/*'; may be repeated.",
)
@click.option(
    "--exclude", metavar="PATTERN", multiple=True, help="No paths like '*sample*'; may be repeated."
)
@click.option("--hidden", is_flag=True, help="Hidden files and folders too.")
@click.option("--min-bytes", type=click.IntRange(1), help="Nothing smaller.")
@click.option("--settle", type=Duration(), metavar="T", help="Unchanged for so long: 10s.")
@click.option("--scan", type=Duration(), metavar="T", help="Look through all of it so often: 60s.")
@common_options
@click.pass_context
def add(ctx: click.Context, /, *, folder: str, as_json: bool, **options: Any) -> int:  # noqa: ANN401 - click's options
    """Convert what lies in a folder of this machine, and what comes, each content once."""
    names = ("extensions", "include", "exclude", "hidden", "min_bytes", "settle", "scan")
    given = {name: options.pop(name) for name in names}
    filters: Json = {
        "extensions": [
            e.strip(" .") for e in (given["extensions"] or "").split(",") if e.strip(" .")
        ],
        "include": list(given["include"]),
        "exclude": list(given["exclude"]),
        "hidden": given["hidden"],
        "min_bytes": given["min_bytes"],
        "settle_s": given["settle"],
        "scan_s": given["scan"],
    }
    body = {
        "submit": submission((folder,), **options),
        "filters": {name: value for name, value in filters.items() if value is not None},
    }
    answer = api_of(ctx).post("/watches", body)
    print_json(answer) if as_json else print(safe_text(f"{answer['id']}  {answer['folder']}"))
    return 0


@watch.command("list")
@common_options
@click.pass_context
def list_(ctx: click.Context, *, as_json: bool) -> int:
    """Watched folders, and what became of the files in those of this machine."""
    answer = api_of(ctx).get("/watches")
    if as_json:
        print_json(answer)
        return 0
    rows = [
        [
            one["id"],
            one["node"],
            one["profile"],
            ", ".join(f"{count} {what}" for what, count in sorted(one["counts"].items())),
            one["folder"],
            one["output"],
            one["fault"],
        ]
        for one in answer["watches"]
    ]
    print_table(("ID", "NODE", "PROFILE", "FILES", "FOLDER", "OUTPUT", "FAULT"), rows)
    return 0


@watch.command("remove")
@click.argument("watch_id", metavar="ID")
@common_options
@click.pass_context
def remove(ctx: click.Context, *, watch_id: str, as_json: bool) -> int:
    """Watch a folder no more; the jobs that it made go on."""
    answer = api_of(ctx).delete(f"/watches/{segment(watch_id)}")
    print_json(answer) if as_json else print(safe_text(f"{answer['folder']} is watched no more"))
    return 0

"""`mesh-cli tenants`: how much of the mesh each tenant gets."""

from typing import Any

import click

from node.cli.client import api_of
from node.cli.faults import Commands, Json, print_json
from node.cli.faults import safe as safe_text
from node.cli.options import Size, common_options
from node.cli.show import print_table, size

_NOBODY = "(none)"
"""How jobs without a tenant are shown; in commands they are the tenant ''."""


@click.group(cls=Commands)
def tenants() -> None:
    """How much of the mesh each tenant gets: shares and quotas."""


@tenants.command("list")
@common_options
@click.pass_context
def list_tenants(ctx: click.Context, *, as_json: bool) -> int:
    """Tenants of whom something is said; others have a share of 1 and no quota."""
    answer = api_of(ctx).get("/tenants")
    if as_json:
        print_json(answer)
        return 0
    rows = [
        (
            one["name"] or _NOBODY,
            one["share"],
            _limit(one["slots"]),
            f"{one['waiting_jobs']}/{_limit(one['queued_jobs'])}",
            f"{size(one['waiting_bytes'])}/{_bytes(one)}",
        )
        for one in answer["tenants"]
    ]
    print_table(("TENANT", "SHARE", "SLOTS", "WAITING", "BYTES"), rows)
    return 0


def _limit(number: int | None) -> str:
    return "any" if number is None else str(number)


def _bytes(tenant: Json) -> str:
    return "any" if tenant["queued_bytes"] is None else size(tenant["queued_bytes"])


@tenants.command("set")
@click.argument("name")
@click.option(
    "--share", type=click.IntRange(1, 1_000), metavar="N", help="Its weight beside others; 1."
)
@click.option(
    "--slots",
    type=click.IntRange(-1),
    metavar="N",
    help="Tasks of its jobs that run at once at most, on all nodes together; -1: any number.",
)
@click.option(
    "--queued-jobs",
    type=click.IntRange(-1),
    metavar="N",
    help="Films of its jobs that wait at most; submissions beyond are refused. -1: any number.",
)
@click.option(
    "--queued-bytes",
    type=Size(),
    metavar="B",
    help="Bytes of films that wait at most: 500GB; any.",
)
@common_options
@click.pass_context
def set_tenant(ctx: click.Context, /, *, name: str, as_json: bool, **said: Any) -> int:  # noqa: ANN401 - click's options
    """Give a tenant a share and a quota; what is not named stays.  '' is who names no tenant."""
    return _ended(api_of(ctx).post("/tenants", {"name": name} | said), as_json=as_json)


@tenants.command("remove")
@click.argument("name")
@common_options
@click.pass_context
def remove_tenant(ctx: click.Context, *, name: str, as_json: bool) -> int:
    """Say nothing of a tenant any more; its jobs go on, with a share of 1 and no quota."""
    return _ended(api_of(ctx).post("/tenants/remove", {"name": name}), as_json=as_json)


def _ended(tenant: Json, *, as_json: bool) -> int:
    slots = f"share {tenant['share']}, slots {_limit(tenant['slots'])}"
    queued = f"may wait: films {_limit(tenant['queued_jobs'])}, bytes {_bytes(tenant)}"
    line = f"{tenant['name'] or _NOBODY}: {slots}; {queued}"
    print_json(tenant) if as_json else print(safe_text(line))
    return 0

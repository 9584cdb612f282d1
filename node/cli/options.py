"""Options that commands share, and values as people write them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from mesh import clock
from mesh.limits import parse_rate

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
STATES = [
    "queued",
    "planning",
    "running",
    "verifying",
    "publishing",
    "done",
    "failed",
    "cancelled",
    "waiting",
    "paused",
]
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DAY = re.compile(r"^\d{4}-\d{2}-\d{2}")


@dataclass(slots=True)
class Common:
    """Where the node is; what a subcommand says wins over what the group says."""

    home: str | None = None
    api: str | None = None
    as_json: bool = False


def given(_: click.Context, param: click.Parameter, value: T) -> T:
    """Refuses an empty text, mostly a script's variable that holds nothing: `--folder "$DIR"` is not every folder."""
    if value == "" or (isinstance(value, tuple) and "" in value):
        raise click.BadParameter("it is empty; give it a value, or leave it out", param=param)
    return value


def _remember(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    common = ctx.ensure_object(Common)
    if given(ctx, param, value) is not None and param.name in ("home", "api"):
        setattr(common, param.name, value)


def _as_json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    common = ctx.ensure_object(Common)
    common.as_json = common.as_json or value
    return common.as_json


def home_option(command: F) -> F:
    """`--home DIR`."""
    return click.option(
        "--home",
        metavar="DIR",
        callback=_remember,
        expose_value=False,
        help="Data directory of the node (also DARKSTREAM_HOME).",
    )(command)


def common_options(command: F) -> F:
    """`--home`, `--api` and `--json`."""
    command = click.option(
        "--api",
        metavar="ADDR:PORT",
        callback=_remember,
        expose_value=False,
        help="Where the node's API listens (also DARKSTREAM_API).",
    )(command)
    command = click.option(
        "--json", "as_json", is_flag=True, callback=_as_json, help="Print one JSON document."
    )(command)
    return home_option(command)


class Duration(click.ParamType[int]):
    """Seconds, written as 90, 90s, 30m, 1h, 2d."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The number of seconds."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,9})([smhdw]?)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no duration; write it as 45s, 30m, 1h or 2d", param, ctx)
        return int(match.group(1)) * _UNITS_S[match.group(2) or "s"]


class Rate(click.ParamType[int]):
    """Bytes a second, written as 20MB/s, 500k, 100Mbit/s, off or default."""

    name = "rate"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The number of bytes; 0 for off, -1 for what the node's configuration says."""
        if isinstance(value, int):
            return value
        if str(value).strip().lower() == "default":
            return -1
        try:
            return parse_rate(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[int]):
    """Bytes, written as 500GB, 1.5TB, 800MiB or a number; any is -1."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The number of bytes."""
        text = str(value).strip().lower()
        if text in ("any", "-1"):
            return -1
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,3})?)\s*([kmgt]?)(i?)b?", text)
        if match is None:
            self.fail(f"{value!r} is no size; write it as 500GB, 1.5TB, or any", param, ctx)
        number, unit, binary = match.groups()
        step = 1_024 if binary else 1_000
        return int(float(number) * step ** (" kmgt".index(unit) if unit else 0))


class DeviceSlots(click.ParamType[tuple[str, int]]):
    """A device of a node and a number of films, written as gpu0=2."""

    name = "device slots"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """The device and the number; -1 for what the node's configuration says."""
        device, _, number = str(value).partition("=")
        if not device or re.fullmatch(r"-1|\d{1,4}", number) is None:
            self.fail(f"{value!r} is not NAME=N, for example gpu0=2", param, ctx)
        return device, int(number)


class Since(click.ParamType[int]):
    """A moment as milliseconds since 1970, written as a duration ago (2h) or as a date (2026-11-24)."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The moment."""
        if isinstance(value, int):
            return value
        if _DAY.match(str(value)):
            from datetime import datetime  # noqa: PLC0415 - start-up time

            try:
                moment = datetime.fromisoformat(str(value)).astimezone()
            except ValueError:
                self.fail(f"{value!r} is no date; write it as 2026-11-24T18:00", param, ctx)
            return int(moment.timestamp() * 1_000)
        return clock.wall_ms() - Duration().convert(value, param, ctx) * 1_000

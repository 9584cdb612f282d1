"""How films are to be converted, in options that `submit` and `convert` share, and as the API hears it."""

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from mesh.errors import PathError, UsageError
from node.cli.faults import Json
from node.cli.options import given

F = TypeVar("F", bound=Callable[..., Any])
_NEW_OR_SOURCE: Final = click.Choice(["new", "source"])
_OPTIONS: Final = (
    click.option(
        "--profile",
        "-p",
        required=True,
        metavar="P",
        help="How to convert: web, mobile, archive, small, or a FILE.toml of your own.",
    ),
    click.option(
        "--hardware",
        metavar="NAMES",
        default="",
        help="Encoders to use, best first: any, or some of nvenc, qsv, vaapi, amf, videotoolbox, vulkan, cpu."
        " Without cpu a job waits for such a device.",
    ),
    click.option(
        "--output",
        "-o",
        metavar="DIR",
        callback=given,
        help="Folder for the results; else beside the films.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace results that exist."),
    click.option(
        "--replace",
        is_flag=True,
        help="The result takes the film's place; `job restore` brings the original back.",
    ),
    click.option(
        "--trash-days", type=click.IntRange(1, 3_650), help="How long an original is kept; 30."
    ),
    click.option("--times", type=_NEW_OR_SOURCE, help="Whose times the result has."),
    click.option("--permissions", type=_NEW_OR_SOURCE, help="Whose permissions the result has."),
    click.option(
        "--larger",
        type=click.Choice(["keep", "discard"]),
        help="What becomes of a result that is no smaller than its film.",
    ),
    click.option(
        "--metadata",
        type=click.Choice(["keep", "no-location", "none"]),
        help="What is kept of title, date, place and the like.",
    ),
    click.option(
        "--vmaf-min",
        type=click.FloatRange(0, 100),
        metavar="V",
        help="Refuse a result that looks less like its film (VMAF, on samples).",
    ),
    click.option(
        "--needs",
        metavar="LABEL",
        multiple=True,
        help="Only on nodes with this label (`nodes work --label`); all of them when repeated.",
    ),
    click.option(
        "--on", metavar="NODE", multiple=True, help="Only on this node; any of them when repeated."
    ),
    click.option("--no-split", is_flag=True, help="Convert each film whole, on one node."),
)


def film_options(command: F) -> F:
    """All of them, in their order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def submission(
    paths: tuple[str, ...],
    *,
    profile: str,
    hardware: str,
    output: str | None,
    no_split: bool,
    needs: tuple[str, ...],
    on: tuple[str, ...],
    **more: object,
) -> Json:
    """The request; options that were not given are left to the profile."""
    name, definition = _profile(profile)
    for path in paths:
        if not _is_text(path):
            raise PathError(f"the name {path!a} is no UTF-8", "rename the file")
    return {
        "paths": [os.path.abspath(path) for path in paths],  # noqa: PTH100 - keeps a link's own name
        "profile": name,
        "definition": definition,
        "encoders": [word.strip() for word in hardware.split(",") if word.strip()],
        "output": os.path.abspath(output) if output else None,  # noqa: PTH100 - see above
        "split": not no_split,
        "needs": list(needs),
        "on": list(on),
        **more,
    }


def _is_text(path: str) -> bool:
    """Whether a request can carry it; the system gives other bytes as surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _profile(text: str) -> tuple[str, str]:
    """The name of a profile, and its definition as JSON when it is a file of the person's own."""
    return read_profile(text) if text.endswith(".toml") else (text, "")


def read_profile(text: str) -> tuple[str, str]:
    """Name and definition, as JSON, of the profile in a TOML file.  Raises `UsageError`."""
    from node.gateway.models import DEFINITION_CHARS_MAX  # noqa: PLC0415 - start-up time

    path = Path(text)
    try:
        with path.open("rb") as file:
            raw = file.read(DEFINITION_CHARS_MAX + 1)
        if len(raw) > DEFINITION_CHARS_MAX:
            raise UsageError(
                f"{text} is larger than {DEFINITION_CHARS_MAX >> 10} KiB", "shorten it"
            )
        found = tomllib.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{text} cannot be read: {error.strerror}", "check the path") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{text} is no TOML: {error}", "see docs/profiles.md") from None
    name = str(found.setdefault("name", path.stem))
    try:
        return name, json.dumps(found, ensure_ascii=False)
    except TypeError:
        raise UsageError(f"{text} holds a date or a time", "see docs/profiles.md") from None

"""`mesh-cli profiles`: ways to convert, the built-in ones and the mesh's own."""

import json
from typing import Any

import click

from node.cli.client import api_of, segment
from node.cli.faults import Commands, Json, print_json
from node.cli.faults import safe as safe_text
from node.cli.film_options import read_profile
from node.cli.options import common_options
from node.cli.show import print_table


@click.group(cls=Commands)
def profiles() -> None:
    """Ways to convert: the built-in ones, and the mesh's own."""


@profiles.command("list")
@common_options
@click.pass_context
def list_profiles(ctx: click.Context, *, as_json: bool) -> int:
    """All profiles, the built-in ones first."""
    answer = api_of(ctx).get("/profiles")
    if as_json:
        print_json(answer)
        return 0
    rows = [
        (
            one["name"],
            "built in" if one["built_in"] else "the mesh's own",
            _codec(one["definition"]),
            one["title"],
        )
        for one in answer["profiles"]
    ]
    print_table(("NAME", "FROM", "PICTURE", "WHAT FOR"), rows)
    return 0


def _codec(definition: Json) -> str:
    video = definition.get("video", {})
    return f"{video.get('codec', '?')} crf {video.get('crf', '?')}"


@profiles.command()
@click.argument("name")
@common_options
@click.pass_context
def show(ctx: click.Context, *, name: str, as_json: bool) -> int:
    """One profile with every field, as the TOML that `profiles add` takes."""
    answer = api_of(ctx).get(f"/profiles/{segment(name)}")
    print_json(answer) if as_json else print(_toml(answer["definition"]), end="")
    return 0


@profiles.command()
@click.argument("file")
@common_options
@click.pass_context
def add(ctx: click.Context, *, file: str, as_json: bool) -> int:
    """Add the profile in a TOML file, or put it in the place of the one of its name."""
    _, definition = read_profile(file)
    answer = api_of(ctx).post("/profiles", {"definition": definition})
    print_json(answer) if as_json else print(safe_text(f"{answer['name']} is a profile now"))
    return 0


@profiles.command()
@click.argument("name")
@common_options
@click.pass_context
def remove(ctx: click.Context, *, name: str, as_json: bool) -> int:
    """Remove a profile; jobs that were made with it go on."""
    answer = api_of(ctx).post(f"/profiles/{segment(name)}/remove")
    print_json(answer) if as_json else print(safe_text(f"{answer['name']} is removed"))
    return 0


def _toml(definition: Json) -> str:
    """A profile has texts, numbers, lists of texts, and tables one deep."""
    plain = {key: value for key, value in definition.items() if not isinstance(value, dict)}
    lines = _lines(plain)
    for key, value in definition.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *_lines(value)]
    return "\n".join(lines) + "\n"


def _lines(values: Json) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in values.items() if value is not None]


def _value(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    # TOML writes texts, numbers, true and false, and lists of them as JSON does.
    return safe_text(json.dumps(value, ensure_ascii=False))

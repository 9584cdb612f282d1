"""Writes the pages of docs/ that say what the code says: errors, configuration, commands, views, profiles, the API.

`make docs` runs it; with `--check` it writes nothing and ends with 1 when a page is stale.
"""

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from pydantic import BaseModel

if TYPE_CHECKING:
    from node.gateway.service import NodeService

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mesh", "ledger", "node")
MARK = "<!-- Written by docs/generate.py (make docs); change the code instead. -->"


def load_errors() -> None:
    """Imports every module of ours that defines an error, so that its classes are known."""
    defines = re.compile(r"^class \w+\((\w+\.)?\w*(Error|Refusal|Fault)\w*\b", re.MULTILINE)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if defines.search(path.read_text("utf-8")):
                importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("-",) * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)


def sentence(text: str | None) -> str:
    """A docstring on one line."""
    return " ".join(inspect.cleandoc(text or "").split())


# --- errors ---------------------------------------------------------------------------------------


INTERNAL = "A fault of DarkStream itself. Please report it with the end of the log."


OUTCOMES: tuple[tuple[str, str], ...] = (
    ("closed", 'Joining: the mesh admits nobody now (`admission = "closed"`); ask for a token.'),
    ("denied", "Joining: a person denied this node; ask that person."),
    (
        "digest",
        "Ledger: the owner named another result than the worker handed back; it is taken again.",
    ),
    ("lease_expired", "Ledger: the worker was silent for too long; the task goes to another node."),
    ("no_approval", "Joining: nothing is pending for this node; it asks anew by itself."),
    ("no_mesh", "Ledger: it belongs to no mesh yet; try again in a moment."),
    ("other_mesh", "Joining: the token belongs to another mesh; create one in this mesh."),
    (
        "overtaken",
        "Ledger: another machine was faster with this part of a film; nothing is to be done.",
    ),
    ("owner_revoked", "Ledger: the node that has the film was revoked; submit it on a member."),
    ("released", "Ledger: the worker gave its lease back because it stops; nobody is to blame."),
    ("replayed", "Joining: a proof was sent twice; the node begins anew by itself."),
    (
        "revoked",
        "Ledger: this key was distrusted for good; remove the node's identity to join as a new node.",
    ),
    ("stale_token", "Ledger: a result or report came under a lease that is over; it is dropped."),
    ("token_expired", "Joining: the token has expired; create another one."),
    (
        "token_used",
        "Joining: the token is used up; create another one, with --uses for several nodes.",
    ),
    (
        "too_many_tries",
        "Joining: more than five tries in a minute from one address; wait a minute.",
    ),
    (
        "unknown_token",
        "Joining: no such token is open, or a replica is behind; create another one.",
    ),
    (
        "wrong_nonce",
        "Joining: the other side does not keep to the protocol; somebody may be in between.",
    ),
    ("wrong_proof", "Joining: the other side does not know the token's secret; check the token."),
)
"""Codes that are no class: outcomes of commands, refusals of the join socket."""


def errors_page() -> str:
    """Every stable code with what an operator should know."""
    from mesh.errors import DarkStreamError  # noqa: PLC0415 - each page imports what it describes

    load_errors()
    classes: list[type[DarkStreamError]] = []
    waiting = [DarkStreamError]
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        if one.__module__.partition(".")[0] in PACKAGES and one not in classes:
            classes.append(one)
    rows: dict[str, dict[str, tuple[str, ...]]] = {}
    for one in sorted(classes, key=lambda c: (c.code, c.__module__, c.__qualname__)):
        text = INTERNAL if one is DarkStreamError else sentence(one.__doc__)
        where = {"here": "here", "elsewhere": "on another node", "never": "no"}[one.retry]
        row = (f"`{one.code}`", text, one.blame, where, str(one.exit_code), str(one.http_status))
        rows.setdefault(one.code, {}).setdefault(text, row)
    return "\n".join(
        [
            "# Errors",
            "",
            MARK,
            "",
            "Every failure prints one line, `error[CODE]: what happened; what to do`; `--json` prints the",
            "same as an object, and the HTTP API as a problem document (RFC 9457) with the same code.",
            "",
            "Fault is where to look: `user` (the request), `local` (the node that says it), `remote`",
            "(another node). Retry says whether the same thing can succeed later, and where.",
            "",
            table(
                ("code", "meaning", "fault", "retry", "exit", "HTTP"),
                [row for same in rows.values() for row in same.values()],
            ),
            "",
            "## Outcomes of the ledger and of joining",
            "",
            "They stand in `job show`, in the history and in the counters of refusals.",
            "",
            table(("code", "meaning"), [(f"`{code}`", text) for code, text in OUTCOMES]),
            "",
            "## Exit codes",
            "",
            table(
                ("code", "meaning"),
                [
                    ("0", "done"),
                    ("1", "a job failed"),
                    ("2", "usage"),
                    ("3", "no node reachable"),
                    ("4", "not allowed"),
                    ("5", "no coordinator (quorum lost)"),
                    ("6", "the port or the home is in use (`mesh-node`)"),
                    ("130", "interrupted"),
                    ("141", "whoever read the output left (`mesh-cli jobs | head -1`)"),
                ],
            ),
            "",
        ]
    )


# --- configuration --------------------------------------------------------------------------------


def _field_notes(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings that stand below fields."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model)))
    notes: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for one, after in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(one, ast.AnnAssign)
                    and isinstance(one.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                ):
                    notes[one.target.id] = sentence(str(after.value.value))
    return notes


def _kind(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return _kind(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        kinds = [_kind(one, definitions) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(kinds)
    kind = {"string": "text", "integer": "number", "boolean": "true or false"}.get(
        str(schema.get("type")), str(schema.get("type"))
    )
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}), definitions)}"
    if schema.get("type") == "object":
        return f"table of {_kind(schema.get('additionalProperties', {}) or {}, definitions)}"
    low, high = schema.get("minimum"), schema.get("maximum")
    return f"{kind}, {low:,} to {high:,}" if low is not None and high is not None else kind


def _flag_helps() -> dict[str, str]:
    """What `mesh-node start --help` says of each flag."""
    start = _root("node.cli.mesh_node")
    assert isinstance(start, click.Group)
    return {
        flag.removeprefix("--"): sentence(param.help)
        for param in start.commands["start"].params
        if isinstance(param, click.Option)
        for flag in param.opts
    }


def _settings(
    model: type[BaseModel], prefix: str, helps: dict[str, str]
) -> Iterator[tuple[str, ...]]:
    schema = model.model_json_schema()
    notes = _field_notes(model)
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{prefix}{name}.", helps)
            continue
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        text = str(list(default)) if isinstance(default, tuple) else str(default).lower()
        shown = "" if default in (None, (), {}, "") else f"`{text}`"
        key = f"{prefix}{name}".replace("_", "-") if not prefix else f"{prefix}{name}"
        kind = _kind(schema["properties"][name], schema.get("$defs", {}))
        meaning = ". ".join(
            text for text in (helps.get(key, "").rstrip("."), notes.get(name, "")) if text
        )
        yield f"`{key}`", kind, shown, meaning


def configuration_page() -> str:
    """Every key of the configuration file."""
    from node.settings.config import CONFIG_VARIABLE, ENVIRONMENT, Config  # noqa: PLC0415 - see errors_page

    variables = [(f"`{name}`", f"`{key}`") for name, key in sorted(ENVIRONMENT.items())]
    return "\n".join(
        [
            "# Configuration",
            "",
            MARK,
            "",
            "A node needs none. What is set comes from flags of `mesh-node start`, else from the",
            "environment, else from the file `node.toml` in the node's home (or the one that `--config`",
            f"or `{CONFIG_VARIABLE}` names), else from the defaults. A key of the file has the name of",
            "its flag. `mesh-node check-config` shows every fault at once, with its line.",
            "",
            "```toml",
            'name = "attic"',
            'seed = ["192.0.2.7:7440"]',
            'allow = ["/srv/films"]',
            "",
            "[log]",
            'format = "json"',
            "```",
            "",
            table(
                ("key", "value", "default", "meaning"), list(_settings(Config, "", _flag_helps()))
            ),
            "",
            "## Environment",
            "",
            table(("variable", "sets"), variables),
            "",
            f"`{CONFIG_VARIABLE}` names the configuration file; `DARKSTREAM_API_KEY` is what `mesh-cli`",
            "shows to a node in place of the token file.",
            "",
        ]
    )


# --- command line ---------------------------------------------------------------------------------


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], f"{path} {name}")


def _command_text(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    lines = [f"## {path}", "", f"    {usage}", "", sentence(command.help), ""]
    rows = [record for param in command.params if (record := param.get_help_record(context))]
    if rows:
        lines += [table(("option", "meaning"), [(f"`{o}`", sentence(t)) for o, t in rows]), ""]
    return "\n".join(lines)


def _root(module: str) -> click.Command:
    """The click command that a console script runs."""
    loaded = importlib.import_module(module)
    found = [
        value
        for value in vars(loaded).values()
        if isinstance(value, click.Command) and value.callback is not None
    ]
    groups = [value for value in found if isinstance(value, click.Group)]
    named = [group for group in groups if not any(group in g.commands.values() for g in groups)]
    if len(named) != 1:
        raise LookupError(f"{module} has no single root command: {named}")
    return named[0]


def cli_page() -> str:
    """Every command with its options."""
    texts = ["# Command line", "", MARK, ""]
    for script, module in (("mesh-node", "node.cli.mesh_node"), ("mesh-cli", "node.cli.mesh_cli")):
        for path, command in _commands(_root(module), script):
            texts.append(_command_text(path, command))
    return "\n".join(texts)


# --- the ledger's views ---------------------------------------------------------------------------


def views_page() -> str:
    """The views that `mesh-cli ledger query` sees, with the prose that stands before each."""
    texts = ["# The ledger's views", "", MARK, ""]
    texts += [
        'What `mesh-cli ledger query "SELECT ..."` sees: stable names over the tables, read-only,',
        "answered from the local replica, also when no node runs.",
        "",
    ]
    source = "\n".join(
        path.read_text("utf-8") for path in sorted((ROOT / "ledger" / "sql").rglob("*.sql"))
    )
    view = re.compile(
        r"((?:^--[^\n]*\n)*)^CREATE (?:TEMP |TEMPORARY )?VIEW (?:IF NOT EXISTS )?(\w+)(.*?);[ \t]*$",
        re.MULTILINE | re.DOTALL,
    )
    for prose, name, body in sorted(view.findall(source), key=lambda found: str(found[1])):
        words = " ".join(line.removeprefix("--").strip() for line in prose.splitlines())
        texts += [f"## {name}", "", *([words, ""] if words else [])]
        texts += ["```sql", f"CREATE VIEW {name}{body};", "```", ""]
    return "\n".join(texts)


def profiles_page() -> str:
    """The built-in profiles, and every field of one's own."""
    from node.media.profiles import BUILT_IN, Profile  # noqa: PLC0415 - see errors_page

    built_in = [
        (
            f"`{one.name}`",
            one.title,
            f"{one.video.codec}, {one.video.bits} bits, crf {one.video.crf}, {one.video.speed}",
        )
        for one in BUILT_IN.values()
    ]
    head = ("field", "value", "default", "meaning")
    return "\n".join(
        [
            "# Profiles",
            "",
            MARK,
            "",
            table(("name", "what for", "picture"), built_in),
            "",
            "A profile of your own is a TOML file: `mesh-cli convert FILM --profile tiny.toml`. Its text goes",
            "into the ledger with each job, so a later change of the file changes no job. Options of the",
            "command line win over it. `mesh-cli profiles add tiny.toml` makes it known to every node, and",
            "`--profile tiny` is enough from then on; `profiles show NAME` prints one to begin with.",
            "",
            "```toml",
            'name = "tiny"            # else the name of the file',
            'container = "mp4"',
            "",
            "[video]",
            'codec = "h264"',
            "crf = 30",
            'encoders = ["NVENC", "CPU"]',
            "short_side_max = 480",
            "",
            "[audio]",
            'codec = "aac"',
            "bitrate_kbps = 96",
            "```",
            "",
            table(head, list(_settings(Profile, "", {}))),
            "",
        ]
    )


def openapi_document() -> str:
    """What the HTTP API is, for programs; the version is the path's, so that a release changes nothing."""
    from node.gateway.app import Faces  # noqa: PLC0415 - see errors_page

    # The routes are described without a node behind them: none is called.
    faces = Faces(cast("NodeService", None), "", "v1")
    return json.dumps(faces.api.openapi(), indent=1, ensure_ascii=True) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors_page,
    "configuration.md": configuration_page,
    "cli.md": cli_page,
    "views.md": views_page,
    "profiles.md": profiles_page,
    "openapi.json": openapi_document,
}


def main() -> int:
    """Writes all pages, or with `--check` compares them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; 1 when a page is stale"
    )
    check = parser.parse_args().check
    stale: list[str] = []
    for name, page in PAGES.items():
        path, text = ROOT / "docs" / name, page()
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, "utf-8")
    if stale:
        print(f"{'stale, run make docs' if check else 'written'}: {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

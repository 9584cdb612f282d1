"""How every command ends: one line for a person, an object for a program, an exit code for both."""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import click

from mesh import errors
from mesh.errors import DarkStreamError, UsageError
from node.cli import streams
from node.settings.config_text import ConfigFaultsError, nearest

Json = dict[str, Any]
_BY_STATUS = {
    401: errors.EXIT_NOT_ALLOWED,
    403: errors.EXIT_NOT_ALLOWED,
    421: errors.EXIT_NOT_ALLOWED,
    503: errors.EXIT_NO_COORDINATOR,
}


class StoppedWatchingError(DarkStreamError):
    """The person pressed Ctrl-C. What was submitted goes on in the mesh."""

    code = "interrupted"
    blame = "user"
    exit_code = errors.EXIT_INTERRUPTED


def error_from(code: str, what: str, todo: str, status: int = 0) -> DarkStreamError:
    """The error that a node told, with its own code, and the exit code that belongs to it."""
    known = errors.errors_by_code().get(code)
    if known is not None:
        return known(what, todo)
    exit_code = _BY_STATUS.get(status)
    if exit_code is None:
        exit_code = errors.EXIT_USAGE if 400 <= status < 500 else errors.EXIT_JOB_FAILED
    told = type("ToldError", (DarkStreamError,), {"code": code, "exit_code": exit_code})
    error = told(what, todo)
    assert isinstance(error, DarkStreamError)
    return error


def safe(text: object) -> str:
    """Text of others for a terminal: control and direction signs shown, not obeyed."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in str(text)
    )


def print_error(error: DarkStreamError) -> None:
    """One line for a person on stderr; every fault of a configuration has its own."""
    if isinstance(error, ConfigFaultsError):
        for fault in error.faults:
            print(f"error[{error.code}]: {safe(fault.text())}", file=sys.stderr)
    else:
        print(safe(error.line()), file=sys.stderr)


def error_json(error: DarkStreamError) -> Json:
    """The same for a program."""
    told: Json = {"code": error.code, "what": error.what, "todo": error.todo}
    if isinstance(error, ConfigFaultsError):
        told["faults"] = [
            {
                "file": fault.source,
                "line": fault.line,
                "key": fault.key,
                "what": fault.what,
                "todo": fault.todo,
            }
            for fault in error.faults
        ]
    return {"error": told}


def print_json(document: object) -> None:
    """The one JSON document of a command."""
    is_utf8 = (sys.stdout.encoding or "").lower() in ("utf-8", "utf8")
    text = json.dumps(document, indent=2, ensure_ascii=not is_utf8, allow_nan=False)
    print(text, flush=True)  # a reader of `--follow` waits for it


class Commands(click.Group):
    """A group that says which command a person may have meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a guess in the error."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            guess = nearest(args[0], self.list_commands(ctx))
            raise click.UsageError(f"no such command {args[0]!r}{guess}", ctx)
        return super().resolve_command(ctx, args)


def run(command: click.Command, arguments: Sequence[str]) -> int:
    """Runs a command to its exit code; no exception leaves it."""
    try:
        result: object = command.main(args=list(arguments), standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return errors.EXIT_USAGE
    except click.ClickException as error:
        failure: DarkStreamError = _usage(error)
    except (click.Abort, KeyboardInterrupt):
        failure = StoppedWatchingError("interrupted", "what was submitted goes on")
    except DarkStreamError as error:
        failure = error
    except SystemExit:
        return streams.EXIT_READER_LEFT  # click's own answer to it
    except OSError as error:
        failure = streams.full(error) or _defect(error)
    except UnicodeEncodeError as error:
        # The system gives bytes of a word that are no text as surrogates; printing takes anything.
        is_word = "surrogates" in error.reason
        bad = UsageError(
            "a word of the command is no UTF-8 text", "rename the file, or write it so"
        )
        failure = bad if is_word else _defect(error)
    except Exception as error:  # noqa: BLE001 - a person gets a line, also for our own mistakes
        failure = _defect(error)
    else:
        return result if isinstance(result, int) else 0
    with suppress(OSError):  # nobody reads it; the exit code says it all the same
        if "--json" in arguments:
            print_json(error_json(failure))
    with suppress(OSError):
        print_error(failure)
    return failure.exit_code


def _defect(error: Exception) -> DarkStreamError:
    with suppress(OSError):
        traceback.print_exc()
    return DarkStreamError(
        f"{type(error).__name__}: {error}", "this is a defect of DarkStream; please report it"
    )


def _usage(error: click.ClickException) -> UsageError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    name = context.command_path if context else "mesh-cli"
    what = " ".join(error.format_message().split()).rstrip(".")
    return UsageError(what, f"see {name} --help")


def main_of(command: click.Command) -> Callable[[], None]:
    """The entry point of a console script."""

    def main() -> None:
        streams.ready()
        sys.exit(streams.ended(run(command, sys.argv[1:])))

    return main

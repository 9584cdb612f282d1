"""`mesh-node`: starts a node on this machine, and answers about this machine without one."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.errors import EXIT_USAGE
from node.cli.client import home_of
from node.cli.faults import Commands, Json, error_json, main_of, print_error, print_json
from node.cli.options import Common, home_option
from node.settings.config_text import ConfigFaultsError
from node.settings.home_paths import CACHE_FOLDER

if TYPE_CHECKING:
    from node.settings.config import Config

_FLAG_KEYS = {"log_level": "log.level", "log_format": "log.format"}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="darkstream", prog_name="mesh-node")
@home_option
def cli() -> None:
    """A machine's part of the mesh: start it, or ask what this machine can do."""


def _flags(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """What was typed, by the keys of the configuration."""
    typed = {_FLAG_KEYS.get(name, name): value for name, value in given.items()}
    # An empty text was typed as well, mostly by a script whose variable holds nothing: it is judged.
    flags = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in typed.items()
        if value is not None and value is not False and value != ()
    }
    home = ctx.ensure_object(Common).home
    return {**flags, "home": home} if home else flags


@cli.command()
@click.option("--name", metavar="N", help="Name of this node; else the machine's.")
@click.option(
    "--join", metavar="TOKEN", help="Join a mesh with a token of `mesh-cli token create`."
)
@click.option("--join-file", metavar="FILE", help="Read the token from a file.")
@click.option("--seed", multiple=True, metavar="HOST[:PORT]", help="A node's address; repeatable.")
@click.option("--new-mesh", is_flag=True, help="Form a new mesh without looking for one.")
@click.option("--open", "open", is_flag=True, help="Admit every node of this network unasked.")
@click.option("--role", metavar="full|witness", help="A witness votes and does no work.")
@click.option("--interface", multiple=True, metavar="IF", help="Use only these; repeatable.")
@click.option("--listen", metavar="ADDR:PORT", help="For other nodes; default 0.0.0.0:7440.")
@click.option("--api", metavar="ADDR:PORT", help="For people on this machine; 127.0.0.1:7450.")
@click.option("--allow", multiple=True, metavar="DIR", help="A folder of films; repeatable.")
@click.option("--slots", type=int, metavar="N", help="Conversions at a time; else by the machine.")
@click.option("--ffmpeg", metavar="FILE", help="The FFmpeg to use.")
@click.option(
    "--software-vulkan", is_flag=True, help="Let Vulkan on the processor work; it is no GPU."
)
@click.option("--config", metavar="FILE", help="Configuration; else node.toml in the home.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
@click.option("--log-format", metavar="text|json", help="Text for people, JSON for machines.")
@home_option
@click.pass_context
def start(ctx: click.Context, /, *, config: str | None, **given: Any) -> int:  # noqa: ANN401 - the flags, judged by the configuration
    """Start a node in the foreground: it finds a mesh or forms one, and logs to stderr."""
    from node import logging_setup  # noqa: PLC0415 - start-up time of the other commands
    from node.settings.config_files import load_config  # noqa: PLC0415 - see above
    from node.settings.home_files import prepare_home  # noqa: PLC0415 - see above

    settings = load_config(_flags(ctx, given), os.environ, config, default_home=_home(ctx))
    prepare_home(settings.home)
    logging_setup.configure(settings.log)

    from node import daemon  # noqa: PLC0415 - a fault of the settings is told before all of it loads

    return daemon.run(settings)


@cli.command("check-config")
@click.argument("file", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@home_option
@click.pass_context
def check_config(ctx: click.Context, *, file: str | None, as_json: bool) -> int:
    """Check the configuration: every fault at once, with its line; nothing is started."""
    from node.settings.config_files import load_config, read_config_file  # noqa: PLC0415 - start-up time

    home, flags = _home(ctx), _flags(ctx, {})
    path, text = read_config_file(flags, os.environ, file, default_home=home)
    answer: Json = {"file": str(path), "exists": bool(text) or path.exists(), "ok": True}
    try:
        settings = load_config(flags, os.environ, file, default_home=home)
    except ConfigFaultsError as error:
        if as_json:
            print_json({**answer, "ok": False, **error_json(error)})
        print_error(error)
        return EXIT_USAGE
    if as_json:
        shown = settings.model_dump(mode="json", exclude={"join"})
        print_json({**answer, "settings": shown})
    elif answer["exists"]:
        print(f"{path}: no faults")
    else:
        print(f"{path} does not exist: the defaults are used, no faults")
    return 0


@cli.command()
@click.option("--ffmpeg", metavar="FILE", help="The FFmpeg to ask; else the configured one.")
@click.option(
    "--software-vulkan", is_flag=True, help="Try Vulkan on the processor too; it is no GPU."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@home_option
@click.pass_context
def detect(ctx: click.Context, *, ffmpeg: str | None, software_vulkan: bool, as_json: bool) -> int:
    """Devices, encoders that really encoded a frame here, how fast, and why others did not."""
    from node.cli.views import print_detection  # noqa: PLC0415 - start-up time
    from node.detection import detect_here  # noqa: PLC0415 - see above

    settings = _settings(ctx, {"ffmpeg": ffmpeg, "software_vulkan": software_vulkan})
    looked = detect_here(
        settings.ffmpeg,
        Path(settings.home) / CACHE_FOLDER,
        software_vulkan=settings.software_vulkan,
        speeds=True,
    )
    found = asyncio.run(looked).model_dump(mode="json")
    print_json(found) if as_json else print_detection(found)
    return 0


def _settings(ctx: click.Context, flags: dict[str, Any]) -> "Config":
    """What a node would be told here."""
    from node.settings.config_files import load_config  # noqa: PLC0415 - start-up time

    return load_config(_flags(ctx, flags), os.environ, default_home=_home(ctx))


def _home(ctx: click.Context) -> Path:
    """Where `--home` is given nobody needs to have a home directory."""
    return home_of(ctx.ensure_object(Common))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@home_option
@click.pass_context
def doctor(ctx: click.Context, *, as_json: bool) -> int:
    """What works on this machine, what does not, and what to do."""
    from node.cli.doctor import examine  # noqa: PLC0415 - start-up time

    findings = examine(_flags(ctx, {}), os.environ, _home(ctx))
    if as_json:
        print_json({"ok": all(one["ok"] for one in findings), "findings": findings})
    else:
        for one in findings:
            todo = f"; {one['todo']}" if one["todo"] else ""
            print(f"{'ok  ' if one['ok'] else 'FAIL'} {one['name']}: {one['what']}{todo}")
    return 0 if all(one["ok"] for one in findings) else 1


main = main_of(cli)

if __name__ == "__main__":
    main()

"""What is told on stderr: two forms, levels per component, causes, lines that peers cannot forge."""

import io
import json
import logging
import re
from collections.abc import Generator
from pathlib import Path

import pytest
import structlog

from node import logging_setup
from node.settings.config import COMPONENTS, LogConfig

TREE = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _restored() -> Generator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def told(config: LogConfig, component: str = "mesh") -> tuple[structlog.BoundLogger, io.StringIO]:
    stream = io.StringIO()
    logging_setup.configure(config, stream)
    return structlog.get_logger(component), stream


def test_text_for_people() -> None:
    log, stream = told(LogConfig())
    with structlog.contextvars.bound_contextvars(cause_id="c1"):
        log.info("a node asks to join", name="two words", port=7440)
    line = stream.getvalue()
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d\.\d{3} info    mesh        a node asks to join name="two words"'
        r" port=7440 cause_id=c1\n",
        line,
    ), line


def test_json_for_machines() -> None:
    log, stream = told(LogConfig(format="json"))
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("it failed", path=Path("/x"))
    line = json.loads(stream.getvalue())
    assert (line["level"], line["component"], line["event"]) == ("error", "mesh", "it failed")
    assert line["path"] == "/x"
    assert line["at"].endswith("Z")
    assert "ValueError: why" in line["exception"]


def test_a_level_for_each_component() -> None:
    config = LogConfig(level="warning", levels={"transfer": "debug", "join": "error"})
    _, stream = told(config)
    for name in ("transfer", "join", "mesh"):
        for level in ("debug", "info", "warning", "error"):
            getattr(structlog.get_logger(name), level)("x")
    seen = [tuple(line.split()[1:3]) for line in stream.getvalue().splitlines()]
    assert [level for level, name in seen if name == "transfer"] == [
        "debug",
        "info",
        "warning",
        "error",
    ]
    assert [level for level, name in seen if name == "mesh"] == ["warning", "error"]
    assert [level for level, name in seen if name == "join"] == ["error"]


def test_a_peer_cannot_forge_lines_or_fill_the_disk() -> None:
    log, stream = told(LogConfig())
    log.warning("refused", name="evil\n12:00:00 info mesh all is well\x1b[2J", long="x" * 100_000)
    log.warning("first\nsecond\x1b[2J", name="a\n\x1b[2Jb")
    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue()) < 3_000


def test_libraries_speak_through_it() -> None:
    _, stream = told(LogConfig(format="json"))
    logging.getLogger("uvicorn.error").warning("Invalid %s", "request")
    logging.getLogger("zeroconf").info("chatter")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["component"], line["level"], line["event"]) == (
        "uvicorn",
        "warning",
        "Invalid request",
    )


def test_a_link_that_is_down_is_a_line_and_a_defect_a_trace() -> None:
    _, stream = told(LogConfig())
    for fault in (OSError(101, "Network is unreachable"), KeyError("defect")):
        try:
            raise fault
        except (OSError, KeyError):
            logging.getLogger("zeroconf").warning("Error sending", exc_info=True)
    first, second, *trace = stream.getvalue().splitlines()
    assert first.endswith('Error sending reason="[Errno 101] Network is unreachable"')
    assert second.endswith("Error sending")
    assert trace[0].startswith("Traceback")


def test_every_name_that_logs_can_be_given_a_level() -> None:
    used = {
        name
        for package in ("mesh", "ledger", "node")
        for path in (TREE / package).rglob("*.py")
        for name in re.findall(r"get_logger\(\"(\w+)\"", path.read_text("utf-8"))
    }
    assert used <= set(COMPONENTS)

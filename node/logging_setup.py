"""What a node tells on stderr: text for people or JSON for machines, a level for each component.

Every line carries its component (the name given to `structlog.get_logger`) and, inside
`structlog.contextvars.bound_contextvars(cause_id=...)`, the cause that it belongs to.
"""

import json
import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

_HIDDEN = [name for name in ("rich", "better_exceptions") if name not in sys.modules]
for _name in _HIDDEN:
    # structlog loads them for coloured tracebacks that no node prints: 12 MB and 0.15 s.
    sys.modules[_name] = None  # type: ignore[assignment]  # what Python documents for "not there"
import structlog  # noqa: E402 - see above

for _name in _HIDDEN:
    del sys.modules[_name]

from mesh import clock  # noqa: E402 - see above
from node.settings.config import LogConfig  # noqa: E402 - see above

VALUE_CHARS_MAX = 2_000
"""One value of a line; a peer chooses some of them."""
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50, "exception": 40}
_FOREIGN_LEVEL = "warning"
"""Of other people's loggers (uvicorn, zeroconf, asyncio)."""
Event = MutableMapping[str, Any]


class Output:
    """The end of the line: knows its component, writes to the stream."""

    def __init__(self, component: str, stream: TextIO) -> None:
        self.component = component
        self._stream = stream

    def msg(self, line: str) -> None:
        """Writes one line at once, so that lines of threads never mix."""
        self._stream.write(line + "\n")
        self._stream.flush()

    log = debug = info = warning = warn = error = critical = exception = fatal = failure = err = msg


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Sets the form and the levels of everything that is logged from now on, also by libraries."""
    out = stream or sys.stderr
    lowest = min(_LEVELS[level] for level in (config.level, *config.levels.values()))

    def output(*names: object) -> Output:
        return Output(str(names[0]) if names else "node", out)

    structlog.configure(
        processors=[
            _level_filter(config),
            structlog.contextvars.merge_contextvars,
            _stamp,
            structlog.processors.format_exc_info,
            _bounded,
            _as_json if config.format == "json" else _as_text,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        logger_factory=output,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(_FOREIGN_LEVEL.upper())


class _Forward(logging.Handler):
    """Lines of libraries that use the standard library's logging."""

    def emit(self, record: logging.LogRecord) -> None:
        component = record.name.partition(".")[0]
        # No cached logger: names of libraries are few, but not ours to count.
        log = structlog.get_logger(component)
        level = "error" if record.levelno >= logging.ERROR else "warning"
        fault = record.exc_info[1] if record.exc_info else None
        if isinstance(fault, OSError):
            # A link that is down, a port that is gone: nobody's defect, and a line says it all.
            getattr(log, level)(record.getMessage(), reason=str(fault))
        else:
            getattr(log, level)(record.getMessage(), exc_info=record.exc_info or None)


def _level_filter(config: LogConfig) -> Callable[[Output, str, Event], Event]:
    limits = {name: _LEVELS[level] for name, level in config.levels.items()}
    common = _LEVELS[config.level]

    def judge(logger: Output, method: str, event: Event) -> Event:
        if _LEVELS.get(method, 20) < limits.get(logger.component, common):
            raise structlog.DropEvent
        event["component"] = logger.component
        event["level"] = "error" if method == "exception" else method
        return event

    return judge


def _stamp(_: Output, __: str, event: Event) -> Event:
    from datetime import UTC, datetime  # noqa: PLC0415 - start-up time

    moment = datetime.fromtimestamp(clock.wall_ms() / 1_000, UTC)
    event["at"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def _bounded(_: Output, __: str, event: Event) -> Event:
    for key, value in event.items():
        if isinstance(value, str) and len(value) > VALUE_CHARS_MAX and key != "exception":
            event[key] = value[:VALUE_CHARS_MAX] + "..."
    return event


def _as_json(_: Output, __: str, event: Event) -> str:
    first = {key: event.pop(key) for key in ("at", "level", "component", "event")}
    return json.dumps({**first, **event}, ensure_ascii=False, default=str)


def _as_text(_: Output, __: str, event: Event) -> str:
    at, level, component = (event.pop(key) for key in ("at", "level", "component"))
    what, exception = _printable(event.pop("event")), event.pop("exception", "")
    values = "".join(f" {key}={_quoted(value)}" for key, value in event.items())
    line = f"{at[11:-1]} {level:<7} {component:<11} {what}{values}"
    return f"{line}\n{exception}" if exception else line


def _quoted(value: object) -> str:
    text = _printable(value)
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text


def _printable(value: object) -> str:
    """Names of peers are theirs to choose: control signs are shown, not obeyed."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in str(value)
    )

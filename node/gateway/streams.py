"""Answers that are no JSON document: the event stream (SSE) and the metrics in Prometheus' text form."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from node.gateway.models import Event, Metric

PING_S = 5.0
"""A comment so often keeps proxies from closing, and lets a client notice a dead node."""
RETRY_MS = 1_000


async def server_sent(
    events: AsyncIterator[Event], stopping: asyncio.Event, *, ping_s: float = PING_S
) -> AsyncIterator[str]:
    """The stream's text, from its opening line until the events end or the node stops."""
    stopped = asyncio.ensure_future(stopping.wait())
    upcoming: asyncio.Future[Event] | None = None
    try:
        yield f"retry: {RETRY_MS}\n: connected\n\n"
        while not stopping.is_set():
            upcoming = upcoming or asyncio.ensure_future(anext(events))
            either: set[asyncio.Future[Any]] = {upcoming, stopped}
            await asyncio.wait(either, timeout=ping_s, return_when=asyncio.FIRST_COMPLETED)
            if upcoming.done():
                event, upcoming = upcoming.result(), None
                yield f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
            elif not stopping.is_set():
                yield ": ping\n\n"
    except StopAsyncIteration:
        return
    finally:
        stopped.cancel()
        if upcoming is not None:
            upcoming.cancel()


def exposition(metrics: Iterable[Metric]) -> str:
    """Prometheus' text format 0.0.4; samples of one name stand together, in the order of their names."""
    lines: list[str] = []
    last = ""
    for metric in sorted(metrics, key=lambda one: (one.name, sorted(one.labels.items()))):
        name = f"darkstream_{metric.name}"
        if name != last:
            lines += [f"# HELP {name} {_escape(metric.help)}", f"# TYPE {name} {metric.kind}"]
            last = name
        labels = ",".join(
            f'{key}="{_escape(value, quote=True)}"' for key, value in sorted(metric.labels.items())
        )
        value = int(metric.value) if metric.value.is_integer() else metric.value
        lines.append(f"{name}{{{labels}}} {value}" if labels else f"{name} {value}")
    return "".join(line + "\n" for line in lines)


def _escape(text: str, *, quote: bool = False) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quote else escaped

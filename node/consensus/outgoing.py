"""What consensus says to other nodes, without what another word says as well.

Raft allows every message to be lost, so one that a later one makes needless may stay unsaid.  Each
costs its sender and its receiver a wake-up, and the answer the same again.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from mesh.ids import NodeId, node_of
from mesh.messages import Append, AppendAck, ConsensusMessage, Message

NEWS_WAIT_S: Final = 0.005
"""How long the news of a commit waits for an append that brings it along; a busy leader sends one every millisecond."""


class Outgoing:
    """Sends for a driver, on its loop."""

    def __init__(self, send: Callable[[NodeId, Message], bool]) -> None:
        self._send = send
        self._news: dict[NodeId, Append] = {}
        self._timer: asyncio.TimerHandle | None = None

    def say(self, message: ConsensusMessage) -> None:
        """Sends it, but an append without entries only if none with entries follows at once.

        All that such a one tells is the commit index, which every append does; a probe without
        entries may wait as well.
        """
        to = node_of(message.to)
        if isinstance(message, Append):
            if not message.entries:
                self._news[to] = message
                if self._timer is None:
                    loop = asyncio.get_running_loop()
                    self._timer = loop.call_later(NEWS_WAIT_S, self._tell_all)
                return
            self._news.pop(to, None)
        self._send(to, message)

    def say_all(self, messages: Sequence[ConsensusMessage]) -> None:
        """Sends what one batch wants said, in order, without acknowledgements that a later one covers."""
        for number, message in enumerate(messages, 1):
            if not any(_covers(later, message) for later in messages[number:]):
                self.say(message)

    def tell(self, node: NodeId) -> None:
        """This node waits for the news."""
        news = self._news.pop(node, None)
        if news is not None:
            self._send(node, news)

    def close(self) -> None:
        """Says nothing more."""
        self._news.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _tell_all(self) -> None:
        self._timer = None
        for node in tuple(self._news):
            self.tell(node)


def _covers(later: ConsensusMessage, earlier: ConsensusMessage) -> bool:
    """Whether both acknowledge appends of one leader, the later one all that the earlier one does."""
    return (
        isinstance(earlier, AppendAck)
        and isinstance(later, AppendAck)
        and earlier.ok
        and later.ok
        and (later.to, later.term) == (earlier.to, earlier.term)
        and later.index >= earlier.index
    )

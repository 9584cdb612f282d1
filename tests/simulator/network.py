"""Virtual time, and a network that loses, doubles, delays, reorders and cuts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from random import Random

from mesh.ids import NodeId, node_of
from mesh.messages import WIRE, AppendAck, ConsensusMessage
from tests.simulator.parameters import Parameters

HINT_BACK_MAX = (6, 60)
"""A little, or past a tail that a leader collected while it was cut off."""


class Time:
    """Events in the order of their times, and of their making where times are equal."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.steps = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._made = 0

    def after(self, delay_ms: int, event: Callable[[], None]) -> None:
        self._made += 1
        heappush(self._events, (self.now_ms + max(0, delay_ms), self._made, event))

    def step(self, until_ms: int) -> bool:
        """Runs the next event not later than `until_ms`; False when there is none."""
        if not self._events or self._events[0][0] > until_ms:
            self.now_ms = until_ms
            return False
        self.now_ms, _, event = heappop(self._events)
        self.steps += 1
        event()
        return True


class Network:
    """Delivers messages between nodes as the parameters want."""

    def __init__(
        self,
        time: Time,
        random: Random,
        parameters: Parameters,
        deliver: Callable[[ConsensusMessage], None],
    ) -> None:
        self._time = time
        self._random = random
        self._parameters = parameters
        self._deliver = deliver
        self._cuts: dict[tuple[NodeId, NodeId], int] = {}
        self.healed = False
        self.sent = 0
        self._taken_back: dict[NodeId, int] = {}

    def send(self, message: ConsensusMessage) -> None:
        self.sent += 1
        number = self.sent
        chance = self._random.random
        parameters = self._parameters
        if self.healed:
            self._time.after(1, lambda: self._deliver(message))
            return
        if chance() < parameters.loss:
            return
        copies = 2 if chance() < parameters.duplicates else 1
        for _ in range(copies):
            delay_ms = self._random.randrange(parameters.delay_ms_max + 1)
            self._time.after(delay_ms, lambda: self._arrive(message, number))

    def passes(self, sender: NodeId, to: NodeId) -> bool:
        """Whether a call beside consensus would arrive now."""
        if self.healed:
            return True
        return (sender, to) not in self._cuts and self._random.random() >= self._parameters.loss

    def delay_ms(self) -> int:
        """How long a call takes now."""
        return 1 if self.healed else self._random.randrange(self._parameters.delay_ms_max + 1)

    def take_back(self, sender: NodeId) -> None:
        """What the sender's host still held when it died never leaves."""
        self._taken_back[sender] = self.sent

    def _arrive(self, message: ConsensusMessage, number: int) -> None:
        if number <= self._taken_back.get(node_of(message.sender), 0):
            return
        if (node_of(message.sender), node_of(message.to)) in self._cuts:
            return
        if isinstance(message, AppendAck) and not message.ok:
            message = self._worse_hint(message)
        if self._parameters.over_the_wire:
            message = WIRE.decode(WIRE.encode(message))
        self._deliver(message)

    def _worse_hint(self, refusal: AppendAck) -> AppendAck:
        """A hint is only a hint: a version that steps back further than it must is as safe."""
        if self._random.random() >= self._parameters.poor_hints:
            return refusal
        back = self._random.randrange(1, self._random.choice(HINT_BACK_MAX) + 1)
        lower = max(0, refusal.hint_index - back)
        return replace(refusal, hint_index=lower)

    def cut(self, cuts: Sequence[tuple[NodeId, NodeId]], length_ms: int) -> None:
        """Nothing passes from the first to the second of each pair, for so long."""
        for pair in cuts:
            self._cuts[pair] = self._cuts.get(pair, 0) + 1
        self._time.after(length_ms, lambda: self._mend(cuts))

    def _mend(self, cuts: Sequence[tuple[NodeId, NodeId]]) -> None:
        for cut in cuts:
            self._cuts[cut] -= 1
            if not self._cuts[cut]:
                del self._cuts[cut]

    def heal(self) -> None:
        """From now on everything arrives, in order."""
        self.healed = True

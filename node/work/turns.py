"""Which of a node's leases begins next when a slot is free: pure.

The coordinator reckons with the same order (`ledger.lines`).
"""

from collections.abc import Collection, Mapping

from ledger.device_slots import CPU, from_text
from ledger.jobs import Node
from ledger.scheduler import OLDEST_EVERY
from node.work.order import Order

Slots = Mapping[str, int]
"""Of each device; of one without a name where the mesh knows of none."""


def slots_of(node: Node) -> Slots:
    """As the mesh knows them."""
    told = {one.device: one.slots for one in from_text(node.device_slots)}
    return told or {"": node.slots}


def pool_of(device: str, slots: Slots) -> str:
    """Whose slot a lease takes that names this device; one from before devices were known is the processor's."""
    return "" if "" in slots else device or CPU


def next_turn(waiting: Collection[Order], begun: int) -> Order:
    """The most urgent, then the one that was granted first.

    Of `OLDEST_EVERY` that begin one is the oldest, however urgent others are: it was leased in its
    turn, and must not wait for ever here either.
    """
    if begun % OLDEST_EVERY == OLDEST_EVERY - 1:
        return min(waiting, key=_granted)
    return min(waiting, key=lambda order: (-order.task.priority, *_granted(order)))


def in_line(waiting: Collection[Order]) -> list[Order]:
    """All in the order in which they are likely to begin."""
    return sorted(waiting, key=lambda order: (-order.task.priority, *_granted(order)))


def _granted(order: Order) -> tuple[int, str]:
    return order.attempt.token, order.attempt.id

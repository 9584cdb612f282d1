"""Consensus messages that no honest node sends are refused before the core sees them."""

from dataclasses import replace

import pytest

from mesh.errors import WireError
from mesh.ids import RaftId
from mesh.log import Entry
from mesh.membership import Configuration
from mesh.messages import (
    Append,
    AppendAck,
    ConsensusMessage,
    Heartbeat,
    HeartbeatAck,
    SnapshotOffer,
    TimeoutNow,
    Vote,
    VoteRequest,
)
from mesh.soundness import NUMBER_MAX, TERMS_AHEAD_MAX, check_sound

A, B = RaftId("anna"), RaftId("bert")
OWN_TERM = 2
CONFIGURATION = Configuration.of([A, B]).encode()
APPEND = Append(
    sender=A,
    to=B,
    term=3,
    prev_index=4,
    prev_term=2,
    entries=(
        Entry(5, 2, "command", b"x"),
        Entry(6, 3, "configuration", CONFIGURATION),
        Entry(7, 3, "empty", b""),
    ),
    commit=9,
)
OFFER = SnapshotOffer(
    sender=A,
    to=B,
    term=3,
    base_index=8,
    base_term=2,
    configuration=CONFIGURATION,
    size=10,
    digest="d",
    handle="h",
)
SOUND: list[ConsensusMessage] = [
    APPEND,
    OFFER,
    replace(APPEND, entries=()),
    VoteRequest(sender=A, to=B, term=3, last_index=0, last_term=0, pre=True),
    Vote(sender=A, to=B, term=3, granted=True, pre=False),
    AppendAck(sender=A, to=B, term=3, ok=False, index=4),
    Heartbeat(sender=A, to=B, term=3, commit=1, round=2),
    HeartbeatAck(sender=A, to=B, term=3, round=2),
    TimeoutNow(sender=A, to=B, term=3),
]


@pytest.mark.parametrize("message", SOUND, ids=lambda message: type(message).__name__)
def test_what_honest_nodes_say_is_sound(message: ConsensusMessage) -> None:
    check_sound(message, OWN_TERM)
    check_sound(replace(message, term=OWN_TERM + TERMS_AHEAD_MAX), OWN_TERM)
    for term in (-1, NUMBER_MAX, OWN_TERM + TERMS_AHEAD_MAX + 1):
        with pytest.raises(WireError):
            check_sound(replace(message, term=term), OWN_TERM)


@pytest.mark.parametrize(
    "entries",
    [
        (Entry(6, 2, "command", b"a gap"),),
        (Entry(4, 2, "command", b"behind"),),
        (Entry(5, 2, "command", b""), Entry(5, 2, "command", b"")),
        (Entry(5, 1, "command", b"an older term than before"),),
        (Entry(5, 3, "command", b""), Entry(6, 2, "command", b"")),
        (Entry(5, 4, "command", b"a later term than the leader's"),),
        (Entry(5, 2, "configuration", b"garbage"),),
        (Entry(5, -1, "command", b""),),
    ],
    ids=str,
)
def test_entries_that_no_leader_sends(entries: tuple[Entry, ...]) -> None:
    with pytest.raises(WireError):
        check_sound(replace(APPEND, entries=entries), OWN_TERM)


@pytest.mark.parametrize(
    "message",
    [
        replace(APPEND, prev_index=-1),
        replace(APPEND, prev_term=4, entries=()),
        replace(APPEND, commit=-5),
        replace(OFFER, base_index=0),
        replace(OFFER, base_term=4),
        replace(OFFER, size=-1),
        replace(OFFER, configuration=b"\xc1"),
        AppendAck(sender=A, to=B, term=3, ok=True, index=-1),
        AppendAck(sender=A, to=B, term=3, ok=False, index=1, hint_index=NUMBER_MAX),
        Heartbeat(sender=A, to=B, term=3, commit=-1),
        HeartbeatAck(sender=A, to=B, term=3, round=-1),
        VoteRequest(sender=A, to=B, term=3, last_index=-1, last_term=0, pre=True),
    ],
    ids=lambda message: str(message)[:60],
)
def test_numbers_that_cannot_be(message: ConsensusMessage) -> None:
    with pytest.raises(WireError):
        check_sound(message, OWN_TERM)

"""Joining as two state machines that talk frame by frame; every abuse that a stranger could try."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from mesh.errors import (
    BusyError,
    ConflictError,
    NotAllowedError,
    NotFoundError,
    UsageError,
    WireError,
)
from mesh.ids import MeshId, node_id_of
from mesh.join_guest import ApprovalGuest, Granted, Refused, Say, TokenGuest
from mesh.join_host import (
    CHALLENGE_TTL_MS,
    DENIED_MS,
    FRAMES_BURST,
    PENDING_MAX,
    SILENT_MAX_MS,
    Admit,
    Approved,
    Asked,
    Host,
    HostEffect,
    HostView,
    Invitation,
    PendingChanged,
    PromiseAsked,
)
from mesh.joining import (
    ApprovalCommit,
    ApprovalPending,
    ApprovalPoll,
    ApprovalReveal,
    ApprovalRevealed,
    Ask,
    Challenge,
    Facts,
    GrantedMember,
    JoinAnswer,
    JoinGrant,
    JoinQuestion,
    PromiseRequest,
    Refusal,
    TokenHello,
    TokenProof,
    question_frame,
    read_answer,
)
from mesh.trust import (
    NONCE_BYTES,
    TRIES_A_MINUTE,
    Identity,
    Token,
    commitment,
    identity_of,
    mesh_fingerprint,
    new_token,
)

MESH = MeshId("0123456789abcdef" * 2)
FOUNDER = identity_of(b"f" * 32)
FINGERPRINT = mesh_fingerprint(MESH, FOUNDER.public_key)
HOME = "10.0.0.9"


def facts(identity: Identity, name: str = "desk") -> Facts:
    return Facts(
        raft_id=f"{identity.node_id}.00000001",
        name=name,
        role="full",
        hosts=(HOME,),
        control_port=1,
        bulk_port=2,
        join_port=3,
    )


def guest(number: int) -> Identity:
    return identity_of(number.to_bytes(32, "big"))


def granted_by(host: Identity, founder: Identity = FOUNDER) -> JoinGrant:
    member = GrantedMember(
        node=host.node_id,
        raft_id=f"{host.node_id}.00000001",
        public_key=host.public_key,
        name="attic",
        role="full",
    )
    return JoinGrant(mesh=MESH, founder_key=founder.public_key, members=(member,), members_epoch=1)


@dataclass
class Table:
    """A host and everybody who talks to it."""

    own: Identity = FOUNDER
    invitations: dict[str, Invitation] = field(default_factory=dict[str, Invitation])
    members: set[bytes] = field(default_factory=set[bytes])
    view_changes: dict[str, object] = field(default_factory=dict[str, object])
    now_ms: int = 1_000
    wall_ms: int = 5_000_000
    effects: list[HostEffect] = field(default_factory=list[HostEffect])

    def __post_init__(self) -> None:
        self.host = Host(self.own)
        self.numbers = itertools.count(1)

    def view(self) -> HostView:
        view = HostView(
            fingerprint=FINGERPRINT,
            admission="ask",
            invitation=self.invitations.get,
            is_member=self.members.__contains__,
        )
        return replace(view, **self.view_changes)

    def entropy(self, size: int) -> bytes:
        return next(self.numbers).to_bytes(size, "big")

    def ask(
        self, who: Identity, question: JoinQuestion, address: str = HOME
    ) -> tuple[bytes, JoinAnswer] | None:
        """One round trip; None when the reply waits for an effect."""
        frame = question_frame(question, self.entropy(16))
        step = self.host.receive(
            who.public_key,
            address,
            frame,
            self.view(),
            entropy=self.entropy(NONCE_BYTES),
            now_ms=self.now_ms,
            wall_ms=self.wall_ms,
        )
        self.effects = list(step.effects)
        if step.reply is None:
            return None
        key, answer = read_answer(who, frame, step.reply)
        assert key == self.own.public_key
        assert (step.refused is not None) == isinstance(answer, Refusal)
        return key, answer

    def told(self, who: Identity, question: JoinQuestion, address: str = HOME) -> JoinAnswer:
        answered = self.ask(who, question, address)
        assert answered is not None
        return answered[1]

    def refused(self, who: Identity, question: JoinQuestion, address: str = HOME) -> str:
        answer = self.told(who, question, address)
        assert isinstance(answer, Refusal), answer
        return answer.code

    def token(self, *, uses: int = 1, ttl_ms: int = 60_000) -> Token:
        token = new_token(MESH, FOUNDER.public_key, self.entropy(24))
        self.invitations[token.invitation] = Invitation(
            key=token.key(), uses_left=uses, expires_at_ms=self.wall_ms + ttl_ms
        )
        return token

    def commit(self, who: Identity, nonce: bytes, **more: str) -> JoinAnswer:
        fixed = commitment("guest", who.public_key, nonce)
        return self.told(who, ApprovalCommit(facts=facts(who, **more), commitment=fixed))


def hello(table: Table, who: Identity, token: Token) -> tuple[TokenGuest, Say]:
    side = TokenGuest(who, facts(who), token, table.own.public_key, table.entropy(NONCE_BYTES))
    return side, side.start()


def approval(table: Table, who: Identity, name: str = "desk") -> tuple[ApprovalGuest, str]:
    """Both have revealed: the guest and the code that it shows."""
    side = ApprovalGuest(
        who, facts(who, name), FINGERPRINT, table.own.public_key, table.entropy(NONCE_BYTES)
    )
    step: Say | Granted | Refused = side.start()
    for _ in range(2):
        assert isinstance(step, Say)
        answered = table.ask(who, step.question)
        assert answered is not None
        step = side.receive(*answered)
    assert isinstance(step, Say)
    assert isinstance(step.question, ApprovalPoll)
    assert side.code is not None
    return side, side.code


# --- by token ---------------------------------------------------------------------------------------


def test_a_token_admits_after_both_have_proven_it() -> None:
    table, who = Table(), guest(1)
    token = table.token()
    side, step = hello(table, who, token)
    challenge = table.ask(who, step.question)
    assert challenge is not None
    step = side.receive(*challenge)
    assert isinstance(step, Say)
    assert table.ask(who, step.question) is None
    (admit,) = table.effects
    assert isinstance(admit, Admit)
    assert (admit.invitation, admit.facts.name, admit.ticket.node) == (
        token.invitation,
        "desk",
        who.node_id,
    )
    reply = table.host.reply(admit.ticket, granted_by(table.own))
    last = side.receive(*read_answer(who, admit.ticket.question, reply))
    assert isinstance(last, Granted)
    assert last.grant.mesh == MESH


def test_a_member_that_lost_its_grant_uses_up_nothing() -> None:
    table, who = Table(), guest(1)
    token = table.token(uses=0)
    table.members.add(who.public_key)
    side, step = hello(table, who, token)
    challenge = table.ask(who, step.question)
    assert challenge is not None
    step = side.receive(*challenge)
    assert isinstance(step, Say)
    assert table.ask(who, step.question) is None
    assert [effect.invitation for effect in table.effects if isinstance(effect, Admit)] == [None]


def proof_after(table: Table, who: Identity, token: Token, then: Callable[[], None]) -> JoinAnswer:
    """The answer to a true proof when something happened between challenge and proof."""
    side, step = hello(table, who, token)
    challenge = table.ask(who, step.question)
    assert challenge is not None
    step = side.receive(*challenge)
    assert isinstance(step, Say)
    then()
    answer = table.told(who, step.question)
    told = side.receive(table.own.public_key, answer)
    assert isinstance(told, Refused)
    assert told.proven
    assert told.error().code == "join_refused"
    return answer


def test_how_an_invitation_stands_is_told_to_who_knows_it() -> None:
    for change, code in (
        ({"uses_left": 0}, "token_used"),
        ({"expires_at_ms": 0}, "token_expired"),
        (None, "unknown_token"),
    ):
        table = Table()
        token = table.token()

        def ends(table: Table = table, token: Token = token, change: object = change) -> None:
            known = table.invitations.pop(token.invitation)
            if isinstance(change, dict):
                table.invitations[token.invitation] = replace(known, **change)

        answer = proof_after(table, guest(1), token, ends)
        assert isinstance(answer, Refusal)
        assert answer.code == code


def test_a_challenge_has_one_answer_and_a_short_life() -> None:
    table, who = Table(), guest(1)
    token = table.token()
    side, step = hello(table, who, token)
    challenge = table.ask(who, step.question)
    assert challenge is not None
    proof = side.receive(*challenge)
    assert isinstance(proof, Say)
    assert table.ask(who, proof.question) is None
    assert table.refused(who, proof.question) == "replayed"
    side, step = hello(table, who, token)
    challenge = table.ask(who, step.question)
    assert challenge is not None
    proof = side.receive(*challenge)
    assert isinstance(proof, Say)
    table.now_ms += CHALLENGE_TTL_MS + 1
    assert table.refused(who, proof.question) == "replayed"


def test_a_proof_of_another_key_or_none_is_worth_nothing() -> None:
    table, who, thief = Table(), guest(1), guest(2)
    token = table.token()
    side, step = hello(table, who, token)
    challenge = table.ask(who, step.question)
    assert challenge is not None
    proof = side.receive(*challenge)
    assert isinstance(proof, Say)
    assert table.refused(thief, proof.question) == "replayed"
    _, step = hello(table, thief, token)
    table.told(thief, step.question)
    assert table.refused(thief, proof.question) == "wrong_proof"
    _, step = hello(table, thief, token)
    table.told(thief, step.question)
    assert table.refused(thief, TokenProof(proof=bytes(32))) == "wrong_proof"


def test_tokens_of_others() -> None:
    table, who = Table(), guest(1)
    token = table.token()
    other = new_token(MeshId("f" * 32), FOUNDER.public_key, bytes(24))
    assert table.refused(who, hello(table, who, other)[1].question) == "other_mesh"
    unknown = new_token(MESH, FOUNDER.public_key, b"u" * 24)
    side, step = hello(table, who, unknown)
    answer = table.told(who, step.question)
    told = side.receive(table.own.public_key, answer)
    assert isinstance(told, Refused)
    assert (told.refusal.code, told.proven) == ("unknown_token", False)
    # The right invitation with a wrong secret: the host's own proof shows it to the guest.
    wrong = replace(token, secret=b"w" * 16)
    side, step = hello(table, who, wrong)
    told = side.receive(table.own.public_key, table.told(who, step.question))
    assert isinstance(told, Refused)
    assert (told.refusal.code, told.proven) == ("wrong_proof", False)
    table.view_changes["fingerprint"] = None
    assert table.refused(who, hello(table, who, token)[1].question) == "no_mesh"


def test_five_tries_a_minute_and_success_gives_one_back() -> None:
    table, who = Table(), guest(1)
    token = table.token(uses=99)
    for _ in range(3 * TRIES_A_MINUTE):
        side, step = hello(table, who, token)
        challenge = table.ask(who, step.question)
        assert challenge is not None
        proof = side.receive(*challenge)
        assert isinstance(proof, Say)
        assert table.ask(who, proof.question) is None
    for _ in range(TRIES_A_MINUTE):
        assert isinstance(table.told(who, hello(table, who, token)[1].question), Challenge)
    again = hello(table, who, token)[1].question
    assert table.refused(who, again) == "too_many_tries"
    assert isinstance(table.told(who, again, "10.0.0.8"), Challenge)


def test_ten_strangers_at_a_time() -> None:
    table = Table()
    token = table.token()
    for number in range(PENDING_MAX):
        question = hello(table, guest(number), token)[1].question
        assert isinstance(table.told(guest(number), question, f"10.0.1.{number}"), Challenge)
    late = hello(table, guest(99), token)[1].question
    assert table.refused(guest(99), late) == "busy"
    table.now_ms += CHALLENGE_TTL_MS + 1
    assert isinstance(table.told(guest(99), late), Challenge)


# --- by approval ------------------------------------------------------------------------------------


def test_a_person_compares_the_code_and_approves() -> None:
    table, who = Table(), guest(1)
    side, code = approval(table, who)
    assert PendingChanged() in table.effects
    (pending,) = table.host.pending()
    assert (pending.code, pending.facts.name, pending.node) == (code, "desk", who.node_id)
    assert isinstance(table.told(who, ApprovalPoll()), ApprovalPending)
    found = table.host.find("desk", code)
    table.host.decide(found)
    assert table.host.pending() == ()
    with pytest.raises(NotFoundError):
        table.host.decide(found)
    table.host.granted(who.public_key, granted_by(table.own))
    answered = table.ask(who, ApprovalPoll())
    assert answered is not None
    assert isinstance(side.receive(*answered), Granted)
    # Its answer may be lost: the grant is there for the next poll as well.
    assert isinstance(table.told(who, ApprovalPoll()), JoinGrant)


def test_a_code_that_differs_ends_that_attempt() -> None:
    table, who = Table(), guest(1)
    _, code = approval(table, who)
    other = f"{(int(code) + 1) % 1_000_000:06}"
    with pytest.raises(NotAllowedError, match="another code"):
        table.host.find("desk", other)
    assert table.host.pending() == ()
    assert table.refused(who, ApprovalPoll()) == "no_approval"
    assert approval(table, who)[1] != code


def test_names_that_two_call_themselves_are_approved_by_id() -> None:
    table = Table()
    approval(table, guest(1))
    approval(table, guest(2))
    with pytest.raises(ConflictError):
        table.host.find("desk")
    assert table.host.find(guest(2).node_id).public_key == guest(2).public_key
    with pytest.raises(NotFoundError):
        table.host.find("attic")


def test_nonces_are_fixed_before_they_are_shown() -> None:
    table, who = Table(), guest(1)
    table.commit(who, b"a" * NONCE_BYTES)
    assert table.refused(who, ApprovalReveal(nonce=b"b" * NONCE_BYTES)) == "wrong_nonce"
    assert table.refused(who, ApprovalReveal(nonce=b"a" * NONCE_BYTES)) == "no_approval"
    table.commit(who, b"a" * NONCE_BYTES)
    table.told(who, ApprovalReveal(nonce=b"a" * NONCE_BYTES))
    # A second reveal would be a second try at the code.
    assert table.refused(who, ApprovalReveal(nonce=b"a" * NONCE_BYTES)) == "no_approval"
    assert table.host.pending() == ()


def test_a_host_that_changes_its_nonce_is_noticed() -> None:
    table, who = Table(), guest(1)
    side = ApprovalGuest(who, facts(who), FINGERPRINT, table.own.public_key, b"n" * NONCE_BYTES)
    step = side.start()
    first = table.ask(who, step.question)
    assert first is not None
    step_2 = side.receive(*first)
    assert isinstance(step_2, Say)
    revealed = table.ask(who, step_2.question)
    assert revealed is not None
    assert isinstance(revealed[1], ApprovalRevealed)
    with pytest.raises(WireError, match="committed to"):
        side.receive(revealed[0], replace(revealed[1], nonce=b"x" * NONCE_BYTES))
    with pytest.raises(WireError, match="another node"):
        side.receive(guest(7).public_key, revealed[1])
    with pytest.raises(WireError, match="out of turn"):
        side.receive(table.own.public_key, granted_by(table.own))


def test_a_grant_for_another_mesh_or_of_a_stranger_is_no_grant() -> None:
    table, who = Table(), guest(1)
    side, _ = approval(table, who)
    with pytest.raises(WireError, match="another mesh"):
        side.receive(table.own.public_key, granted_by(table.own, founder=guest(5)))
    with pytest.raises(WireError, match="no member"):
        side.receive(table.own.public_key, granted_by(guest(6)))


def test_denied_for_ten_minutes() -> None:
    table, who = Table(), guest(1)
    approval(table, who)
    table.host.deny(table.host.find("desk"), table.now_ms)
    assert table.refused(who, ApprovalPoll()) == "denied"
    assert table.commit(who, b"a" * NONCE_BYTES) == table.commit(who, b"b" * NONCE_BYTES)
    table.now_ms += DENIED_MS + 1
    table.host.tick(table.now_ms)
    approval(table, who)


def test_who_falls_silent_is_forgotten() -> None:
    table, who = Table(), guest(1)
    approval(table, who)
    table.now_ms += SILENT_MAX_MS + 1
    assert table.host.tick(table.now_ms) == (PendingChanged(),)
    assert table.host.pending() == ()
    assert table.host.tick(table.now_ms) == ()


def test_a_failed_commit_leaves_the_guest_waiting_unless_it_is_hopeless() -> None:
    table, who = Table(), guest(1)
    _, code = approval(table, who)
    table.host.decide(table.host.find("desk", code))
    table.host.undecided(who.public_key, BusyError("no coordinator", "again"))
    assert isinstance(table.told(who, ApprovalPoll()), ApprovalPending)
    table.host.decide(table.host.find("desk", code))
    table.host.undecided(who.public_key, UsageError("never", "no"))
    assert table.refused(who, ApprovalPoll()) == "no_approval"


def test_open_meshes_and_returning_members_need_no_person() -> None:
    for who, change in ((guest(1), {"admission": "open"}), (guest(2), {})):
        table = Table(view_changes=dict[str, object](change))
        table.members.add(guest(2).public_key)
        approval(table, who)
        assert any(isinstance(effect, Approved) for effect in table.effects)
        assert table.host.pending() == ()


def test_a_closed_mesh_takes_nobody_by_approval() -> None:
    table = Table(view_changes={"admission": "closed"})
    answer = table.commit(guest(1), b"a" * NONCE_BYTES)
    assert isinstance(answer, Refusal)
    assert answer.code == "closed"


# --- what no honest guest sends -----------------------------------------------------------------------


def test_claims_that_the_key_does_not_bear_out_are_dropped() -> None:
    table, who = Table(), guest(1)
    other = facts(guest(2))
    for question in (
        Ask(facts=other, state="forming"),
        ApprovalCommit(facts=other, commitment=bytes(NONCE_BYTES)),
        TokenHello(facts=facts(who), fingerprint=FINGERPRINT, invitation="x", nonce=b"short"),
        ApprovalReveal(nonce=b"short"),
        PromiseRequest(facts=facts(who), promised_by=("x",) * 65),
        Ask(facts=replace(facts(who), name="../up"), state="forming"),
        Ask(facts=replace(facts(who), join_port=0), state="forming"),
        Ask(facts=replace(facts(who), bulk_port=70_000), state="forming"),
    ):
        with pytest.raises(WireError):
            table.ask(who, question)


def test_garbage_is_dropped_and_a_flood_is_stopped() -> None:
    table, who = Table(), guest(1)

    def receive(frame: bytes) -> None:
        table.host.receive(
            who.public_key,
            HOME,
            frame,
            table.view(),
            entropy=bytes(NONCE_BYTES),
            now_ms=table.now_ms,
            wall_ms=table.wall_ms,
        )

    for frame in (b"", b"\xc1", bytes(8_193), b"\x93\x01\x02\x03"):
        with pytest.raises(WireError):
            receive(frame)
    for _ in range(FRAMES_BURST):
        with pytest.raises(WireError):
            receive(b"")
    with pytest.raises(WireError, match="too many join frames"):
        table.ask(who, ApprovalPoll())


def test_questions_of_forming_are_for_the_caller_to_answer() -> None:
    table, who = Table(), guest(1)
    assert table.ask(who, Ask(facts=facts(who), state="forming")) is None
    assert [type(effect) for effect in table.effects] == [Asked]
    assert table.ask(who, PromiseRequest(facts=facts(who), promised_by=())) is None
    assert [type(effect) for effect in table.effects] == [PromiseAsked]
    assert node_id_of(who.public_key) == who.node_id


def test_an_answer_fits_only_its_question_and_its_guest() -> None:
    table, who = Table(), guest(1)
    frame = question_frame(ApprovalPoll(), bytes(16))
    step = table.host.receive(
        who.public_key,
        HOME,
        frame,
        table.view(),
        entropy=bytes(NONCE_BYTES),
        now_ms=table.now_ms,
        wall_ms=table.wall_ms,
    )
    assert step.reply is not None
    read_answer(who, frame, step.reply)
    with pytest.raises(WireError):
        read_answer(who, question_frame(ApprovalPoll(), b"x" * 16), step.reply)
    with pytest.raises(WireError):
        read_answer(guest(2), frame, step.reply)

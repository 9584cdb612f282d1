"""Keys, tokens, proofs, codes and limits."""

import hashlib
from dataclasses import replace

import pytest

from mesh.errors import UsageError, WireError
from mesh.ids import MeshId, NodeId, node_id_of
from mesh.trust import (
    INVITATION_ENTROPY_BYTES,
    JOIN_KEY,
    Binding,
    RateLimiter,
    TrustTable,
    approval_code,
    check_proof,
    check_seal,
    commitment,
    fingerprint_of,
    identity_of,
    mesh_fingerprint,
    mesh_tag,
    new_token,
    parse_token,
    prove,
    seal,
    source_of,
)

ONE, TWO, THREE = (identity_of(bytes([n]) * 32) for n in (1, 2, 3))
MESH = MeshId("0123456789abcdef" * 2)
TOKEN = new_token(MESH, ONE.public_key, bytes(range(INVITATION_ENTROPY_BYTES)))
BINDING = Binding(
    fingerprint=TOKEN.fingerprint,
    host_key=ONE.public_key,
    guest_key=TWO.public_key,
    host_nonce=b"h" * 32,
    guest_nonce=b"g" * 32,
)
OTHER_BINDINGS = [
    replace(BINDING, fingerprint=b"x" * 16),
    replace(BINDING, host_key=THREE.public_key),
    replace(BINDING, guest_key=THREE.public_key),
    replace(BINDING, host_nonce=b"x" * 32),
    replace(BINDING, guest_nonce=b"x" * 32),
    replace(BINDING, host_key=BINDING.guest_key, guest_key=BINDING.host_key),
]


def test_an_identity_follows_from_its_secret_and_hides_it() -> None:
    assert ONE.node_id == node_id_of(ONE.public_key)
    assert ONE.keys.secret == b"\x01" * 32
    assert repr(ONE.secret_key) not in repr(ONE)
    with pytest.raises(ValueError, match="32 bytes"):
        identity_of(b"short")
    assert JOIN_KEY.public != JOIN_KEY.secret


def test_the_public_half_is_x25519s() -> None:
    # RFC 7748, 6.1.
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert identity_of(bob).public_key.hex() == public


def test_a_fingerprint_is_for_people() -> None:
    text = fingerprint_of(ONE.public_key)
    assert [len(group) for group in text.split()] == [4] * 8
    assert text != fingerprint_of(TWO.public_key)


def test_a_table_of_trust_is_a_frozen_map_of_digests() -> None:
    table = TrustTable({ONE.public_key: ONE.node_id}, 7)
    assert table[ONE.public_key] == ONE.node_id
    assert TWO.public_key not in table
    assert (list(table), len(table), table.epoch) == ([ONE.public_key], 1, 7)
    source = {ONE.public_key: ONE.node_id}
    table = TrustTable(source, 8)
    source[TWO.public_key] = TWO.node_id
    assert TWO.public_key not in table
    with pytest.raises(ValueError, match="digest"):
        TrustTable({ONE.public_key: NodeId(TWO.node_id)}, 1)


# --- tokens -----------------------------------------------------------------------------------------


def test_a_token_is_one_word_and_comes_back() -> None:
    text = TOKEN.text()
    assert len(text) == 100
    assert text == text.lower()
    assert text.replace("-", "").isalnum()
    assert parse_token(f"  {text.upper()}\n") == TOKEN
    assert (
        parse_token(f"{text[:40]}\r\n  {text[40:80]}\u00a0\n{text[80:]}") == TOKEN
    )  # as mails break it
    assert TOKEN.secret.hex() not in repr(TOKEN)
    assert TOKEN.tag == mesh_tag(mesh_fingerprint(MESH, ONE.public_key))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no token"),
        ("hello-world", "no token"),
        ("ds2-" + TOKEN.text()[4:], "another version"),
        (TOKEN.text()[:-1], "cut short"),
        (TOKEN.text()[:-8], "cut short"),
        (TOKEN.text() + "aaaaaaaa", "cut short"),
        (TOKEN.text()[:50] + "!" + TOKEN.text()[51:], "mistyped"),
        ("ds1-é", "mistyped"),
    ],
)
def test_what_is_no_token_gets_a_clear_line(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        parse_token(text)
    assert caught.value.todo


def test_every_single_typo_is_noticed() -> None:
    text = TOKEN.text()
    for at in range(4, len(text)):
        typo = text[:at] + ("a" if text[at] != "a" else "b") + text[at + 1 :]
        with pytest.raises(UsageError):
            parse_token(typo)


def test_a_fault_of_a_token_never_repeats_it() -> None:
    with pytest.raises(UsageError) as caught:
        parse_token(TOKEN.text()[:-1])
    assert TOKEN.text()[4:20] not in caught.value.line()


def test_the_verifier_key_depends_on_all_of_the_token() -> None:
    keys = {
        TOKEN.key(),
        replace(TOKEN, secret=b"x" * 16).key(),
        replace(TOKEN, invitation="00" * 8).key(),
        replace(TOKEN, fingerprint=b"x" * 16).key(),
    }
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)
    assert TOKEN.secret not in TOKEN.key()
    with pytest.raises(ValueError, match="entropy"):
        new_token(MESH, ONE.public_key, b"short")


# --- proofs -----------------------------------------------------------------------------------------


def test_a_proof_is_good_for_one_side_of_one_talk() -> None:
    key, name = TOKEN.key(), TOKEN.invitation
    proof = prove(key, name, "guest", BINDING)
    assert check_proof(key, name, "guest", BINDING, proof)
    assert not check_proof(key, name, "host", BINDING, proof), "reflected"
    assert not check_proof(key, "00" * 8, "guest", BINDING, proof)
    assert not check_proof(b"k" * 32, name, "guest", BINDING, proof)
    for other in OTHER_BINDINGS:
        assert not check_proof(key, name, "guest", other, proof)
    assert not check_proof(key, name, "guest", BINDING, proof[:-1])


def test_the_code_depends_on_everything_and_has_six_digits() -> None:
    codes = {approval_code(binding) for binding in (BINDING, *OTHER_BINDINGS)}
    assert len(codes) == 1 + len(OTHER_BINDINGS)
    assert all(len(code) == 6 and code.isdigit() for code in codes)
    first_digits = {
        approval_code(replace(BINDING, host_nonce=hashlib.sha256(bytes([n])).digest()))[0]
        for n in range(200)
    }
    assert len(first_digits) == 10, "leading zeros included"


def test_a_commitment_fixes_side_key_and_nonce() -> None:
    made = {
        commitment("guest", ONE.public_key, b"n" * 32),
        commitment("host", ONE.public_key, b"n" * 32),
        commitment("guest", TWO.public_key, b"n" * 32),
        commitment("guest", ONE.public_key, b"m" * 32),
    }
    assert len(made) == 4


def test_a_seal_proves_who_answered_which_question() -> None:
    proof = seal(ONE.keys, TWO.public_key, b"question", b"answer")
    check_seal(TWO.keys, ONE.public_key, b"question", b"answer", proof)
    for own, peer, question, answer, given in (
        (TWO.keys, THREE.public_key, b"question", b"answer", proof),
        (THREE.keys, ONE.public_key, b"question", b"answer", proof),
        (TWO.keys, ONE.public_key, b"other", b"answer", proof),
        (TWO.keys, ONE.public_key, b"question", b"other", proof),
        (TWO.keys, ONE.public_key, b"question", b"answer", proof[:-1]),
        (TWO.keys, ONE.public_key, b"questiona", b"nswer", proof),
    ):
        with pytest.raises(WireError, match="not proven"):
            check_seal(own, peer, question, answer, given)


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_a_key_that_makes_everybody_share_a_secret_is_refused(key: bytes) -> None:
    with pytest.raises(WireError, match="usable"):
        seal(ONE.keys, key, b"question", b"answer")


# --- limits -----------------------------------------------------------------------------------------


def test_five_tries_then_one_in_twelve_seconds() -> None:
    limiter = RateLimiter(per_minute=5, burst=5)
    assert [limiter.take("a", 0) for _ in range(6)] == [True] * 5 + [False]
    assert limiter.take("b", 0), "each source has its own"
    assert not limiter.take("a", 11_000)
    assert limiter.take("a", 12_000)
    assert not limiter.take("a", 12_001)
    limiter.give_back("a")
    limiter.give_back("nobody")
    assert limiter.take("a", 12_001)
    assert [limiter.take("a", 10_000_000) for _ in range(6)] == [True] * 5 + [False]


def test_a_limiter_forgets_the_longest_silent_source() -> None:
    limiter = RateLimiter(per_minute=1, burst=1, sources_max=2)
    for source in ("a", "b", "c"):
        assert limiter.take(source, 0)
    assert not limiter.take("c", 0)
    assert limiter.take("a", 0)


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::1"),
        ("nonsense" * 20, ("nonsense" * 20)[:64]),
    ],
)
def test_what_counts_as_one_source(address: str, source: str) -> None:
    assert source_of(address) == source

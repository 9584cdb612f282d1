"""Who may speak, and how two strangers come to trust each other: keys, tokens, proofs, codes.

Pure: randomness is an argument.  Primitives come from `cryptography` (X25519, HKDF-SHA256,
HMAC-SHA256) and hashlib (BLAKE2b); there is no cipher of our own.  Every digest and proof is over
length-prefixed parts that begin with a label of its purpose, so that none can stand for another.
"""

import hashlib
import hmac
from base64 import b32decode, b32encode
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from types import MappingProxyType
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mesh.errors import UsageError, WireError
from mesh.ids import MeshId, NodeId, node_id_of
from mesh.transport import KEY_BYTES, KeyPair

FINGERPRINT_BYTES: Final = 16
"""128 bits: nobody finds a second mesh with the fingerprint of another."""
TAG_BYTES: Final = 8
"""Of an advert: enough to tell meshes apart; it proves nothing."""
NONCE_BYTES: Final = 32
SECRET_BYTES: Final = 16
INVITATION_ID_BYTES: Final = 8
INVITATION_ENTROPY_BYTES: Final = INVITATION_ID_BYTES + SECRET_BYTES
CODE_DIGITS: Final = 6
"""A million codes and one try an approval; ten thousand would tempt a patient attacker."""
TRIES_A_MINUTE: Final = 5
"""Joins that one address may try; a person types a token fewer times than that."""
LIMITER_SOURCES_MAX: Final = 1_024
"""Addresses remembered by a limiter (about 100 KiB); the longest silent one is forgotten first."""

_TOKEN_PREFIX: Final = "ds1-"  # noqa: S105 - the public mark of the format, no secret
_CHECKSUM_BYTES: Final = 4
_MESH_BYTES: Final = 16
_TOKEN_BYTES: Final = (
    _MESH_BYTES + FINGERPRINT_BYTES + INVITATION_ID_BYTES + SECRET_BYTES + _CHECKSUM_BYTES
)
assert _TOKEN_BYTES % 5 == 0, "base32 without padding"

Side = Literal["host", "guest"]


def framed(label: bytes, *parts: bytes) -> bytes:
    """Unambiguous concatenation: every part behind its length (4 bytes, big endian)."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in (label, *parts))


def digest(label: bytes, *parts: bytes, size: int = 32) -> bytes:
    """BLAKE2b of `framed` parts."""
    return hashlib.blake2b(framed(label, *parts), digest_size=size).digest()


def _mac(key: bytes, label: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, framed(label, *parts), hashlib.sha256).digest()


def _derive(secret: bytes, *, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=purpose).derive(secret)


def same(one: bytes, other: bytes) -> bool:
    """Comparison in constant time."""
    return hmac.compare_digest(one, other)


# --- keys -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """This node's CURVE key pair (raw, 32 bytes each) and the node id that its public half gives."""

    public_key: bytes
    secret_key: bytes = field(repr=False)
    node_id: NodeId

    @property
    def keys(self) -> KeyPair:
        """The pair, as transports take it."""
        return KeyPair(self.public_key, self.secret_key)


def identity_of(secret_key: bytes) -> Identity:
    """The identity with this secret half: 32 random bytes, as CURVE and X25519 (RFC 7748) both take."""
    if len(secret_key) != KEY_BYTES:
        raise ValueError(f"a CURVE key has {KEY_BYTES} bytes, not {len(secret_key)}")
    public = X25519PrivateKey.from_private_bytes(secret_key).public_key().public_bytes_raw()
    return Identity(public_key=public, secret_key=secret_key, node_id=node_id_of(public))


JOIN_KEY: Final = identity_of(digest(b"darkstream join socket 1")).keys
"""The server key of every join socket, known to everybody.

It authenticates nobody; it hides joining from passive ears and lets CURVE prove the guest's own key
to the host.  The host proves itself inside: every answer is sealed with both node keys (`Seal`).
"""


def fingerprint_of(public_key: bytes) -> str:
    """A key for a person to compare: 8 groups of 4 hexadecimal digits of its BLAKE2b."""
    text = digest(b"key fingerprint", public_key, size=16).hex()
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def mesh_fingerprint(mesh: MeshId, founder_key: bytes) -> bytes:
    """Names a mesh by its id and its founder's public key."""
    return digest(b"mesh fingerprint", mesh.encode(), founder_key, size=FINGERPRINT_BYTES)


def mesh_tag(fingerprint: bytes) -> str:
    """What adverts tell of a mesh: 16 hexadecimal digits."""
    return fingerprint[:TAG_BYTES].hex()


class TrustTable(Mapping[bytes, NodeId]):
    """Who may speak: public key to node id, as of one epoch of the members; never changes."""

    __slots__ = ("_nodes", "epoch")

    def __init__(self, members: Mapping[bytes, NodeId], epoch: int) -> None:
        for key, node in members.items():
            if node_id_of(key) != node:
                raise ValueError(f"node id {node} is not the digest of its key")
        self.epoch = epoch
        self._nodes: Mapping[bytes, NodeId] = MappingProxyType(dict(members))

    def __getitem__(self, public_key: bytes) -> NodeId:
        return self._nodes[public_key]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def _shared(own: KeyPair, peer_key: bytes, purpose: bytes) -> bytes:
    """A key that only the holders of both secret halves can know (X25519, then HKDF).

    Raises `WireError` for a peer key of small order, which would give everybody the same secret.
    """
    try:
        peer = X25519PublicKey.from_public_bytes(peer_key)
        secret = X25519PrivateKey.from_private_bytes(own.secret).exchange(peer)
    except ValueError:
        raise WireError("not a usable CURVE key") from None
    salt = digest(b"key pair", *sorted((own.public, peer_key)))
    return _derive(secret, salt=salt, purpose=purpose)


def seal(own: KeyPair, peer_key: bytes, question: bytes, answer: bytes) -> bytes:
    """Proof that the holder of `own` gave this answer to this very question of `peer_key`."""
    return _mac(_shared(own, peer_key, b"darkstream join answer 1"), b"answer", question, answer)


def check_seal(own: KeyPair, peer_key: bytes, question: bytes, answer: bytes, proof: bytes) -> None:
    """Raises `WireError` unless the holder of `peer_key` sealed this answer to our question."""
    key = _shared(own, peer_key, b"darkstream join answer 1")
    if not same(_mac(key, b"answer", question, answer), proof):
        raise WireError("the answer is not proven by the key that it names")


# --- tokens -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An invitation as it travels by hand: which mesh, which invitation, and a secret."""

    mesh: MeshId
    fingerprint: bytes
    invitation: str
    """16 hexadecimal digits."""
    secret: bytes = field(repr=False)

    @property
    def tag(self) -> str:
        """How adverts of its mesh are marked."""
        return mesh_tag(self.fingerprint)

    def key(self) -> bytes:
        """The verifier key (32 bytes) that the mesh keeps instead of the secret."""
        purpose = framed(b"darkstream invitation 1", self.invitation.encode())
        return _derive(self.secret, salt=self.fingerprint, purpose=purpose)

    def text(self) -> str:
        """One printable word of 100 characters: `ds1-...`."""
        raw = (
            bytes.fromhex(self.mesh)
            + self.fingerprint
            + bytes.fromhex(self.invitation)
            + self.secret
        )
        return _TOKEN_PREFIX + b32encode(raw + _checksum(raw)).decode("ascii").lower()


def _checksum(raw: bytes) -> bytes:
    return digest(b"token checksum", raw, size=_CHECKSUM_BYTES)


def new_token(mesh: MeshId, founder_key: bytes, entropy: bytes) -> Token:
    """A token from `INVITATION_ENTROPY_BYTES` random bytes."""
    if len(entropy) != INVITATION_ENTROPY_BYTES:
        raise ValueError(f"a token takes exactly {INVITATION_ENTROPY_BYTES} bytes of entropy")
    return Token(
        mesh=mesh,
        fingerprint=mesh_fingerprint(mesh, founder_key),
        invitation=entropy[:INVITATION_ID_BYTES].hex(),
        secret=entropy[INVITATION_ID_BYTES:],
    )


def parse_token(text: str) -> Token:
    """The token in this text.  Raises `UsageError` that says what is wrong; never repeats the text."""
    bare = "".join(text.split()).lower()  # terminals and mails break long words
    again = "copy the whole line that `mesh-cli token create` printed"
    if not bare.startswith("ds") or "-" not in bare:
        raise UsageError("this is no token: a token begins with ds1-", again)
    if not bare.startswith(_TOKEN_PREFIX):
        raise UsageError("the token is of another version than ds1-", "update this node")
    try:
        raw = b32decode(bare.removeprefix(_TOKEN_PREFIX).upper())
    except ValueError:
        raise UsageError("the token is cut short or mistyped", again) from None
    if len(raw) != _TOKEN_BYTES:
        raise UsageError("the token is cut short or mistyped", again)
    body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if not same(_checksum(body), checksum):
        raise UsageError("the token is mistyped: its checksum does not match", again)
    parts: list[bytes] = []
    for size in (_MESH_BYTES, FINGERPRINT_BYTES, INVITATION_ID_BYTES, SECRET_BYTES):
        parts.append(body[:size])
        body = body[size:]
    mesh, fingerprint, invitation, secret = parts
    return Token(
        mesh=MeshId(mesh.hex()),
        fingerprint=fingerprint,
        invitation=invitation.hex(),
        secret=secret,
    )


# --- proofs and codes -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a proof or a code is about: one conversation between two nodes, for one mesh."""

    fingerprint: bytes
    """Of the mesh: binds its id and its founder."""
    host_key: bytes
    guest_key: bytes
    host_nonce: bytes
    guest_nonce: bytes

    def parts(self) -> tuple[bytes, ...]:
        """In the order that every proof uses."""
        host, guest = node_id_of(self.host_key), node_id_of(self.guest_key)
        return (
            self.fingerprint,
            *(host.encode(), self.host_key, self.host_nonce),
            *(guest.encode(), self.guest_key, self.guest_nonce),
        )


def prove(key: bytes, invitation: str, side: Side, binding: Binding) -> bytes:
    """Proof that `side` knows the invitation's verifier key; useless for the other side or another talk."""
    return _mac(key, b"invitation " + side.encode(), invitation.encode(), *binding.parts())


def check_proof(key: bytes, invitation: str, side: Side, binding: Binding, proof: bytes) -> bool:
    """Whether `side` made this proof."""
    return same(prove(key, invitation, side, binding), proof)


def commitment(side: Side, key: bytes, nonce: bytes) -> bytes:
    """Fixes a nonce before it is shown: 32 bytes."""
    return digest(b"approval commitment " + side.encode(), key, nonce)


def approval_code(binding: Binding) -> str:
    """The six digits that both sides show to a person."""
    raw = digest(b"approval code", *binding.parts(), size=16)
    return f"{int.from_bytes(raw, 'big') % 10**CODE_DIGITS:0{CODE_DIGITS}d}"


# --- limits -----------------------------------------------------------------------------------------


def source_of(address: str) -> str:
    """What one stranger can claim as its own address: an IPv4 address, or an IPv6 network of 64 bits.

    A link-local address counts by itself: the whole LAN shares that network.
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        if not parsed.is_link_local:
            return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return str(parsed)


class RateLimiter:
    """A token bucket for each source: `burst` at once, refilled at `per_minute`; bounded memory."""

    def __init__(
        self, *, per_minute: int, burst: int, sources_max: int = LIMITER_SOURCES_MAX
    ) -> None:
        self._per_minute = per_minute
        self._burst = burst
        self._sources_max = sources_max
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def take(self, source: str, now_ms: int) -> bool:
        """Whether one more is allowed; counts it if so."""
        left, last_ms = self._buckets.pop(source, (float(self._burst), now_ms))
        left = min(float(self._burst), left + (now_ms - last_ms) * self._per_minute / 60_000)
        allowed = left >= 1
        self._buckets[source] = (left - 1 if allowed else left, now_ms)
        if len(self._buckets) > self._sources_max:
            self._buckets.popitem(last=False)
        return allowed

    def give_back(self, source: str) -> None:
        """Undoes one `take`: the try was honest."""
        if (bucket := self._buckets.get(source)) is not None:
            self._buckets[source] = (min(float(self._burst), bucket[0] + 1), bucket[1])

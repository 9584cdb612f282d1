"""Names of things that cross a boundary.

Every id is text that is safe in a log line, a file name, a DNS label and SQL.  None is drawn
here: randomness and time are arguments, so that a simulator can replay them.
"""

import hashlib
from base64 import b32decode, b32encode, b32hexencode
from typing import NewType

NodeId = NewType("NodeId", str)
"""26 characters: base32 (lower case, no padding) of the first 16 bytes of BLAKE2b(public key)."""

RaftId = NewType("RaftId", str)
"""`<node id>.<incarnation>`: a node with one particular data directory.

A wiped data directory is another voter to Raft even when the key is the same (etcd 21178).
"""

MeshId = NewType("MeshId", str)
"""32 hexadecimal digits, drawn by the node that formed the mesh."""

JobId = NewType("JobId", str)
TaskId = NewType("TaskId", str)
AttemptId = NewType("AttemptId", str)
CommandId = NewType("CommandId", str)
CauseId = NewType("CauseId", str)
"""Follows one request through logs, frames and FFmpeg runs."""

NODE_ID_CHARS = 26
INCARNATION_CHARS = 8
_DIGEST_BYTES = 16


def _base32(raw: bytes) -> str:
    return b32encode(raw).decode("ascii").rstrip("=").lower()


def node_id_of(public_key: bytes) -> NodeId:
    """The node id that belongs to a 32-byte CURVE public key."""
    if len(public_key) != 32:
        raise ValueError(f"a CURVE public key has 32 bytes, not {len(public_key)}")
    return NodeId(_base32(hashlib.blake2b(public_key, digest_size=_DIGEST_BYTES).digest()))


def is_node_id(text: str) -> bool:
    """Whether the text has the form of a node id."""
    if len(text) != NODE_ID_CHARS or text != text.lower():
        return False
    try:
        b32decode(text.upper() + "======")
    except ValueError:
        return False
    return True


def raft_id(node: NodeId, incarnation: str) -> RaftId:
    """The consensus identity of a node with the data directory of this incarnation (8 hex digits)."""
    if len(incarnation) != INCARNATION_CHARS:
        raise ValueError(f"an incarnation has {INCARNATION_CHARS} characters, not {incarnation!r}")
    return RaftId(f"{node}.{incarnation}")


def node_of(raft: RaftId) -> NodeId:
    """The node behind a consensus identity."""
    return NodeId(raft.partition(".")[0])


def sortable_id(prefix: str, now_ms: int, entropy: bytes) -> str:
    """An id that sorts by creation time: prefix, 10 characters of time (48 bit of ms), 8 of entropy."""
    if len(entropy) != 5:
        raise ValueError("an id takes exactly 5 bytes of entropy")
    stamp = _base32hex(now_ms.to_bytes(6, "big"))[:10]
    return f"{prefix}{stamp}{_base32hex(entropy)}"


def _base32hex(raw: bytes) -> str:
    # The hexadecimal alphabet of RFC 4648 keeps byte order under text comparison; plain base32 does not.
    return b32hexencode(raw).decode("ascii").rstrip("=").lower()

"""Real messages, and what an enemy makes of them: bytes bent anyhow, values bent within their form."""

import dataclasses
import random
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from mesh.codec import Vocabulary, pack, unpack
from mesh.errors import WireError

EDGES: tuple[object, ...] = (
    *(0, 1, -1, 2, 127, 128, 255, 256, 1 << 20, (1 << 20) + 1, 1 << 31, 1 << 32, 1 << 53),
    *((1 << 63) - 1, -(1 << 63), (1 << 64) - 1, 1 << 42),
    *(None, True, False, 1.5, float("inf"), float("nan"), "", b"", (), {}, "x", b"x"),
    *("a" * 300, b"b" * 300, "\x00", "é\u202e", ((),), {"a": 1}, (1, 2, 3)),
)
"""What stands where something else belongs."""
FRAME_BYTES_MAX = 64 << 10

Names = dict[str, Sequence[object]]
"""Values that mean something, by the names of fields."""


def sample(hint: Any, name: str, draw: random.Random, names: Names) -> Any:  # noqa: PLR0911 - one for each kind of type
    """A value of this type."""
    hint = getattr(hint, "__supertype__", hint)  # of a NewType
    origin = typing.get_origin(hint)
    known = [v for v in names.get(name, ()) if isinstance(hint, type) and type(v) is hint]
    if known and draw.random() < 0.9:
        return draw.choice(known)
    if origin is typing.Literal:
        return draw.choice(typing.get_args(hint))
    if origin is tuple:
        return tuple(
            sample(typing.get_args(hint)[0], name, draw, names) for _ in range(draw.randrange(3))
        )
    if origin in {types.UnionType, typing.Union}:
        return sample(draw.choice(typing.get_args(hint)), name, draw, names)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return built(hint, draw, names)
    if hint is bytes:
        return draw.randbytes(draw.choice((0, 16, 32, 40)))
    if hint is bool:
        return draw.random() < 0.5
    if hint is int:
        return draw.choice((0, 1, 2, 3, 5, draw.randrange(1 << 20), draw.randrange(1 << 62)))
    if hint is float:
        return draw.choice((0.0, 1.5, 1e300))
    if hint is types.NoneType:
        return None
    return draw.choice(("", "a", "film", "0123456789abcdef" * 2, "é" * draw.randrange(9)))


def built(cls: type, draw: random.Random, names: Names) -> Any:
    """An instance of a frozen dataclass."""
    hints = typing.get_type_hints(cls)
    return cls(
        **{
            field.name: sample(hints[field.name], field.name, draw, names)
            for field in dataclasses.fields(cls)
        }
    )


def messages_of(vocabulary: Vocabulary, draw: random.Random, names: Names, count: int) -> list[Any]:
    """So many messages of each kind."""
    return [built(cls, draw, names) for cls in vocabulary.kinds().values() for _ in range(count)]


class Mutator:
    """Makes an input of a corpus: a bent frame, mostly one that still reads as MessagePack."""

    def __init__(self, corpus: Sequence[bytes], draw: random.Random) -> None:
        self._corpus = corpus
        self._draw = draw

    def next(self) -> bytes:
        draw = self._draw
        chance = draw.random()
        if chance < 0.03:
            return draw.randbytes(draw.randrange(200))
        frame = draw.choice(self._corpus)
        if chance < 0.08:
            return frame
        if chance < 0.6:
            frame = self._bent_values(frame)
        if chance > 0.5:
            frame = self._bent_bytes(frame)
        return frame[:FRAME_BYTES_MAX]

    def _bent_values(self, frame: bytes) -> bytes:
        try:
            tree = unpack(frame)
        except WireError:
            return frame
        for _ in range(self._draw.choice((1, 1, 1, 2, 4))):
            tree = self._bent(tree)
        try:
            return pack(tree)
        except (ValueError, OverflowError, TypeError, RecursionError):
            return frame

    def _bent(self, tree: Any) -> Any:
        draw = self._draw
        if isinstance(tree, tuple) and tree and draw.random() < 0.85:
            at = draw.randrange(len(tree))
            if draw.random() < 0.08:
                return draw.choice((tree[:at], tree + tree[at:], tree[at:]))
            return (*tree[:at], self._bent(tree[at]), *tree[at + 1 :])
        if isinstance(tree, dict) and tree and draw.random() < 0.9:
            key = draw.choice(list(tree))
            if draw.random() < 0.08:
                return {name: value for name, value in tree.items() if name != key}
            return {**tree, key: self._bent(tree[key])}
        if type(tree) is int and draw.random() < 0.6:
            return draw.choice(
                (tree + 1, tree - 1, -tree, tree * 2, tree ^ (1 << draw.randrange(63)))
            )
        return draw.choice(EDGES)

    def _bent_bytes(self, frame: bytes) -> bytes:
        draw = self._draw
        bent = bytearray(frame or b"\0")
        for _ in range(draw.choice((1, 1, 2, 4, 16))):
            at = draw.randrange(len(bent) or 1)
            match draw.randrange(6):
                case 0:
                    bent[at : at + 1] = bytes([draw.randrange(256)])
                case 1 if bent:
                    bent[at] ^= 1 << draw.randrange(8)
                case 2:
                    bent[at:at] = draw.randbytes(draw.randrange(1, 9))
                case 3:
                    del bent[at : at + draw.randrange(1, 9)]
                case 4:
                    other = draw.choice(self._corpus)
                    cut = draw.randrange(len(other) or 1)
                    bent[at:] = other[cut:]
                case _:
                    bent[at:at] = bent[at : at + draw.randrange(1, 64)]
        return bytes(bent)


Target = Callable[[bytes], None]
"""Takes an input; raises what must never be raised."""

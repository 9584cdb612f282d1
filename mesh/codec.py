"""Frozen dataclasses to MessagePack and back, strictly.

A `Vocabulary` is a closed set of kinds.  What is read is `[version, kind, fields]`: unknown fields
are ignored (an older node reads a newer one), unknown kinds and newer versions of a kind are
refused, wrong types are refused without coercion.  Sequences come back as tuples.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, TypeVar, cast

import msgpack
from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError, with_config
from pydantic_core import CoreSchema

from mesh.errors import UnknownKindError, WireError

T = TypeVar("T")
_STRICT = ConfigDict(strict=True, extra="ignore")


def value(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass that is read strictly where it stands inside a message."""
    if not is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is no dataclass")
    with_config(_STRICT)(cls)

    def schema(source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Fields are strict; the dataclass itself must be readable from a mapping, which strict mode forbids.
        made: dict[str, Any] = dict(handler(source))
        assert made["type"] == "dataclass", made["type"]
        made["strict"] = False
        return cast("CoreSchema", made)

    # Pydantic looks this name up on the class; checkers know only classes that declare it.
    cls.__get_pydantic_core_schema__ = schema  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    return cls


class Vocabulary:
    """A registry of message kinds: `kind` marks a frozen dataclass, `encode` and `decode` use it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._kinds: dict[str, tuple[type[Any], int]] = {}
        self._of_class: dict[type[Any], tuple[str, int]] = {}
        self._dumps: dict[type[Any], tuple[int, str, Callable[[Any], Any]]] = {}
        self._loads: dict[str, tuple[int, Callable[[Any], Any]]] = {}

    def kind(self, name: str, *, version: int = 1) -> Callable[[type[T]], type[T]]:
        """Class decorator: registers a frozen dataclass under its stable name on the wire."""

        def register(cls: type[T]) -> type[T]:
            if name in self._kinds:
                raise ValueError(f"{self.name}: kind {name!r} is registered twice")
            value(cls)
            self._kinds[name] = (cls, version)
            self._of_class[cls] = (name, version)
            return cls

        return register

    def kinds(self) -> dict[str, type[Any]]:
        """All registered kinds by name."""
        return {name: cls for name, (cls, _) in sorted(self._kinds.items())}

    def name_of(self, message: object) -> str:
        """The stable name of a message's kind."""
        return self._of_class[type(message)][0]

    def encode(self, message: object) -> bytes:
        """The MessagePack form of a registered message."""
        cls = type(message)
        version, name, dump = self._dumps.get(cls) or self._dump(cls)
        return pack((version, name, dump(message)))

    def decode(self, data: bytes | memoryview) -> Any:  # noqa: ANN401 - the kind decides the class
        """The message in these bytes.

        Raises `WireError` for anything that is not exactly a known message, `UnknownKindError`
        when it is well formed but of a kind or version that is not known here.
        """
        value = unpack(data)
        if (
            type(value) is not tuple
            or len(value) != 3
            or type(value[0]) is not int
            or type(value[1]) is not str
            or type(value[2]) is not dict
        ):
            raise WireError(f"{self.name}: not a [version, kind, fields] triple")
        version, name, fields = value
        highest, load = self._loads.get(name) or self._load(name)
        if version > highest:
            raise UnknownKindError(
                f"{self.name}: version {version} of {name!r}, known up to {highest}"
            )
        try:
            return load(fields)
        except (ValidationError, TypeError) as error:
            raise WireError(f"{self.name}: bad fields of {name!r}: {_first_fault(error)}") from None

    # Made when first needed, which keeps the start short, and bare: pydantic's own wrappers around
    # these two functions cost as much as what they do.

    def _dump(self, cls: type[Any]) -> tuple[int, str, Callable[[Any], Any]]:
        name, version = self._of_class[cls]
        made = self._dumps[cls] = version, name, TypeAdapter(cls).serializer.to_python
        return made

    def _load(self, name: str) -> tuple[int, Callable[[Any], Any]]:
        known = self._kinds.get(name)
        if known is None:
            raise UnknownKindError(f"{self.name}: unknown kind {name[:64]!r}")
        cls, highest = known
        made = self._loads[name] = highest, TypeAdapter(cls).validator.validate_python
        return made


def pack(value: object) -> bytes:
    """Canonical enough MessagePack of plain values (dicts keep their order)."""
    packed = msgpack.packb(value, use_bin_type=True)
    assert packed is not None
    return bytes(packed)


def unpack(data: bytes | memoryview) -> Any:  # noqa: ANN401 - plain values of any shape
    """Plain values from MessagePack; every length is bounded by the length of `data`.

    Raises `WireError` for garbage, trailing bytes, duplicate or non-text keys and nesting bombs.
    """
    try:
        return msgpack.unpackb(data, use_list=False, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"not MessagePack: {type(error).__name__}") from None


def _first_fault(error: ValidationError | TypeError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)

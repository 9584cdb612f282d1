"""Where members were reached last, in a small file of the home; losing it costs nothing but time."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from mesh.messages import KNOWN_PEERS_MAX, PeerAddress

BYTES_MAX: Final = 256 << 10
_ADDRESSES: Final = TypeAdapter(list[PeerAddress])


class AddressFile:
    """`AddressBook` in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> tuple[PeerAddress, ...]:
        """The addresses written last; none when the file is missing or damaged."""
        try:
            with self._path.open("rb") as file:
                found = json.loads(file.read(BYTES_MAX))
            for one in found:
                one["hosts"] = tuple(one["hosts"])
            return tuple(_ADDRESSES.validate_python(found)[:KNOWN_PEERS_MAX])
        except (OSError, ValueError, TypeError, KeyError, ValidationError):
            return ()

    def save(self, addresses: Sequence[PeerAddress]) -> None:
        """Replaces the file; a disk that refuses is noticed elsewhere."""
        made = self._path.with_name(f".{self._path.name}.new")
        with suppress(OSError):
            made.write_text(json.dumps([asdict(one) for one in addresses]), "utf-8")
            made.replace(self._path)

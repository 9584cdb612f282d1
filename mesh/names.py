"""Which relative names of others may become paths here; a pure judgement, opened by mesh.destination_files."""

import unicodedata
from typing import Final

from mesh.errors import PathError

NAME_BYTES_MAX: Final = 255
"""Of one component: the limit of every common file system."""
PATH_BYTES_MAX: Final = 4_096
DEPTH_MAX: Final = 64
_DEVICES: Final = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$", "clock$"]
    + [f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"]
)
_WINDOWS_ONLY: Final = frozenset('<>:"|?*')
_BIDI: Final = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def checked_name(name: str, *, windows: bool) -> tuple[str, ...]:
    """The components of a relative name, each safe to open below a folder.  Raises `PathError`.

    Refused everywhere: empty, absolute, `.` and `..`, backslashes, control and direction
    characters, bytes that are no text, trailing dots and spaces, names of devices, and what is too
    long.  `windows` refuses what only Windows cannot store or would read as a drive or stream.
    """
    if not name:
        raise _refused(name, "it is empty")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise _refused(name, "it is not valid text") from None
    parts = tuple(name.split("/"))
    if size > PATH_BYTES_MAX or len(parts) > DEPTH_MAX:
        raise _refused(name, "it is too long")
    for part in parts:
        fault = _fault(part, windows=windows)
        if fault:
            raise _refused(name, fault)
    return parts


def _fault(part: str, *, windows: bool) -> str:
    faults = (
        ("it is absolute or not canonical", part in {"", ".", ".."}),
        ("a part of it is too long", len(part.encode("utf-8")) > NAME_BYTES_MAX),
        ("it holds a control character or a backslash", any(map(_is_control, part))),
        ("it holds a character that changes the direction of writing", _BIDI & set(part)),
        ("a part of it ends with a dot or a space", part.endswith((".", " "))),
        ("it names a device", part.partition(".")[0].rstrip(" ").casefold() in _DEVICES),
        ("it holds a character that Windows cannot store", windows and _WINDOWS_ONLY & set(part)),
    )
    return next((why for why, is_so in faults if is_so), "")


def _is_control(char: str) -> bool:
    return char == "\\" or unicodedata.category(char) in {"Cc", "Zl", "Zp"}


def _refused(name: str, why: str) -> PathError:
    return PathError(f"the name {name[:80]!a} is refused: {why}", "rename the file")

"""Where litestream writes: a folder, a bucket of S3, a host that speaks sftp.  Pure."""

import re
from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import parse_qsl, urlsplit

S3_OPTIONS: Final = ("endpoint", "region", "forcePathStyle", "skipVerify")
"""What may follow the `?` of an s3 address; keys are told by the environment alone."""
_FOLDER: Final = re.compile(r"(/|~|[A-Za-z]:[\\/]|\\\\)")


@dataclass(frozen=True, slots=True)
class Destination:
    """`base` is an absolute path, or an address without its options, which are `options`."""

    kind: Literal["folder", "s3", "sftp"]
    base: str
    options: str = ""

    def below(self, name: str) -> "Destination":
        """The place of that name in it."""
        return replace(self, base=f"{self.base.rstrip('/')}/{name}")

    @property
    def text(self) -> str:
        """As a person writes it."""
        return self.base + (f"?{self.options}" if self.options else "")


def parse_destination(text: str) -> Destination:
    """Reads what a person wrote.  Raises `ValueError` with what is wrong."""
    if "\x00" in text:
        raise ValueError("a destination is a text without NUL")
    scheme, mark, _ = text.partition("://")
    if not mark:
        if not _FOLDER.match(text):
            raise ValueError(
                f"{text!r} is no destination: an absolute folder, s3://BUCKET/PATH or"
                " sftp://USER@HOST/PATH"
            )
        return Destination("folder", text)
    # Not shown in what follows: a person may have put a secret into it.
    parts = urlsplit(text)
    if parts.password is not None or (scheme == "s3" and parts.username is not None):
        raise ValueError(
            "an address holds no secrets: keys of S3 come from the environment"
            " (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), sftp uses backup.sftp_key"
        )
    if not parts.hostname or parts.fragment:
        raise ValueError(f"an address of {scheme} names a place: {scheme}://PLACE/PATH")
    if scheme == "s3":
        unknown = [name for name, _ in parse_qsl(parts.query) if name not in S3_OPTIONS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no option of s3: {', '.join(S3_OPTIONS)}")
        return Destination("s3", f"s3://{parts.netloc}{parts.path}", parts.query)
    if scheme == "sftp":
        if not parts.username or parts.query or parts.path in ("", "/"):
            raise ValueError("an sftp address is sftp://USER@HOST[:PORT]/PATH")
        _ = parts.port  # raises ValueError for what is no port
        return Destination("sftp", f"sftp://{parts.netloc}{parts.path}")
    raise ValueError(f"{scheme}:// is none of a folder, s3:// and sftp://")


def place_name(mesh: str, epoch: int, node: str) -> str:
    """Where one node writes: a mesh that was restored, and each coordinator, has a place of its own.

    Two writers of one place would make of two histories one that never was.
    """
    return f"{mesh}-{epoch}-{node}"

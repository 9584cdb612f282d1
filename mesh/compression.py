"""Whether chunks are worth compressing on their way, and what came compressed as plain bytes again.

Films do not shrink, and looking at each chunk would cost a tenth of a transfer: a sample decides, and
each sample that says no puts the next one further off.  Ledgers and uncompressed pictures shrink to
a half or a tenth.
"""

from typing import Final

import zstandard

from mesh.errors import WireError

LEVEL: Final = 1
"""Some 500 MB/s on a core; higher levels are slower than the links where compression pays."""
WORTH: Final = 0.9
"""A chunk that keeps more of its bytes than this travels as it is."""
SKIPPED_FIRST: Final = 15
SKIPPED_MAX: Final = 1_023
"""Chunks between two samples of a source that does not shrink: 2 ms in each GiB."""


class Shrinker:
    """Decides for one source; used by one thread at a time."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.tried = 0
        """Chunks that were looked at."""
        self._skip = 0
        self._skipped_next = SKIPPED_FIRST

    def shrunk(self, data: bytes) -> bytes | None:
        """The chunk compressed, or None where it does not pay."""
        if self._skip:
            self._skip -= 1
            return None
        self.tried += 1
        small = self._compressor.compress(data)
        if len(small) <= len(data) * WORTH:
            self._skipped_next = SKIPPED_FIRST
            return small
        self._skip = self._skipped_next
        self._skipped_next = min(2 * self._skipped_next + 1, SKIPPED_MAX)
        return None


class Expander:
    """Reverses it on the other side; used by one thread at a time."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def plain(self, data: memoryview, length: int) -> bytes:
        """Exactly so many bytes.  Raises `WireError` for anything else; no more memory than that is taken."""
        try:
            # The frame says how much memory it wants: that is believed only when it is right.
            if zstandard.get_frame_parameters(data).content_size != length:
                raise WireError("bulk: a compressed chunk of another length")
            found = self._decompressor.decompress(
                data, max_output_size=length, read_across_frames=False
            )
        except zstandard.ZstdError:
            raise WireError("bulk: a compressed chunk that is none") from None
        if len(found) != length:
            raise WireError("bulk: a compressed chunk of another length")
        return found

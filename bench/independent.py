"""Decodes a film with PyAV and says everything that is wrong with it: run as a child, `independent.py FILE`.

Another FFmpeg than the one that converts, strict where it can be; complaints go to stderr, a line each.
"""

import sys

import av
import av.logging
from av.error import FFmpegError

FIRST = "the first picture"
STRICT = "crccheck+bitstream+buffer"


def main() -> int:
    """Exit code 1 when nothing of it can be decoded."""
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.ERROR)
    frames = 0
    try:
        with av.open(sys.argv[1]) as film:
            streams = [s for s in film.streams if s.type in ("video", "audio")]
            for stream in streams:
                if stream.codec_context is None:
                    print(f"no decoder for {stream.type}", file=sys.stderr)
                    return 1
                stream.codec_context.options = {"err_detect": STRICT}
            for packet in film.demux(streams):
                if packet.is_corrupt:
                    print("a corrupt packet", file=sys.stderr)
                try:
                    decoded = packet.decode()
                except FFmpegError as error:
                    print(f"{packet.stream.type}: {error}", file=sys.stderr)
                    continue
                for frame in decoded:
                    if packet.stream.type == "video":
                        if not frames:
                            print(FIRST, file=sys.stderr, flush=True)
                        frames += 1
                        if frame.is_corrupt:
                            print("a corrupt frame", file=sys.stderr)
    except FFmpegError as error:
        print(f"reading: {error}", file=sys.stderr)
    return 0 if frames else 1


if __name__ == "__main__":
    sys.exit(main())

"""What an interruption costs a transfer: kill -9 of either side and cuts of the link, at random moments.

    sudo .venv/bin/python bench/kills.py [--quick] [--only sender|receiver|link]

20 moments each (3 with --quick) in a film of 256 MiB.  Counted are the bytes that were sent again:
at most one window and the chunk in flight.  The film must come out right each time.  The cut link
is one of 1 Gbit/s between two namespaces, dead for six seconds: longer than TCP alone would bridge.
"""

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from pathlib import Path

from bench_transfer import Ours, check, make_files
from links import inside

from mesh.transport import CHUNK_BYTES, WINDOW_BYTES_MAX
from tests.netns import Lan, available

FILM_BYTES = 256 << 20
AGAIN_MAX = WINDOW_BYTES_MAX + CHUNK_BYTES
CUT_S = 6.0


@contextlib.contextmanager
def stand(lan: Lan | None = None) -> Generator[tuple[Ours, Path, Path]]:
    """Both sides, the root of the film and a place for what arrives."""
    with tempfile.TemporaryDirectory(prefix="darkstream-kills-", dir="/dev/shm") as name:
        place = Path(name)
        root, work = place / "root", place / "work"
        work.mkdir()
        make_files(root, FILM_BYTES, 0)
        host = lan.address(1) if lan else "127.0.0.1"
        sides = (inside(lan, 1), inside(lan, 2)) if lan else ([], [])
        ours = Ours(work, root, host, sides)
        with contextlib.closing(ours):
            yield ours, root, place


def until_sent(ours: Ours, wanted: int) -> None:
    """Waits until the owner sent so many bytes more."""
    pause, target = threading.Event(), ours.sent_bytes() + wanted
    while ours.sent_bytes() < target:
        pause.wait(0.002)


def killed_receiver(moments: list[int]) -> list[int]:
    """Bytes sent again after kill -9 of the receiver, for each moment."""
    found: list[int] = []
    with stand() as (ours, root, place):
        for number, moment in enumerate(moments):
            to = place / f"to-{number}"
            to.mkdir()
            before = ours.sent_bytes()
            thread = threading.Thread(target=quiet(lambda to=to: ours.fetch("film", to)))
            thread.start()
            until_sent(ours, moment)
            ours.member.send_signal(signal.SIGKILL)
            ours.member.wait()
            thread.join()
            ours.start_member()
            ours.fetch("film", to)
            check(root, to, "film")
            (to / "film").unlink()
            found.append(ours.sent_bytes() - before - FILM_BYTES)
    return found


def killed_sender(moments: list[int]) -> list[int]:
    """Bytes that arrived twice after kill -9 of the sender, for each moment."""
    found: list[int] = []
    with stand() as (ours, root, place):
        received = 0
        for number, moment in enumerate(moments):
            to = place / f"to-{number}"
            to.mkdir()
            answers: list[dict[str, int]] = []
            thread = threading.Thread(
                target=lambda to=to, a=answers: a.append(ours.fetch("film", to))
            )
            thread.start()
            until_sent(ours, moment)
            ours.owner.send_signal(signal.SIGKILL)
            ours.owner.wait()
            ours.start_owner()
            thread.join()
            check(root, to, "film")
            (to / "film").unlink()
            found.append(answers[0]["received"] - received - FILM_BYTES)
            received = answers[0]["received"]
    return found


def cut_link(moments: list[int]) -> list[int]:
    """Bytes sent again after a cut of the link, for each moment."""
    found: list[int] = []
    pause = threading.Event()
    with Lan(2) as lan, stand(lan) as (ours, root, place):
        lan.limit(1, "1gbit")
        for number, moment in enumerate(moments):
            to = place / f"to-{number}"
            to.mkdir()
            before = ours.sent_bytes()
            thread = threading.Thread(target=ours.fetch, args=("film", to))
            thread.start()
            until_sent(ours, moment)
            lan.cut(2)
            pause.wait(CUT_S)
            lan.heal(2)
            thread.join()
            check(root, to, "film")
            (to / "film").unlink()
            found.append(ours.sent_bytes() - before - FILM_BYTES)
    return found


def quiet(go: Callable[[], object]) -> Callable[[], None]:
    """For a call whose other side is about to be killed."""

    def run() -> None:
        with contextlib.suppress(SystemExit, BrokenPipeError):
            go()

    return run


KINDS: dict[str, Callable[[list[int]], list[int]]] = {
    "receiver": killed_receiver,
    "sender": killed_sender,
    "link": cut_link,
}


def main() -> int:
    """Measures and prints; 1 when more than a window and a chunk was sent again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three moments of each kind")
    parser.add_argument("--only", choices=sorted(KINDS))
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    if options.only in (None, "link") and (why := available()):
        raise SystemExit(f"error[bench]: {why}")
    draw = random.Random(options.seed)
    line: dict[str, object] = {"bench": "kills", "seed": options.seed, "quick": options.quick}
    worst = 0
    for kind, run in KINDS.items():
        if options.only not in (None, kind):
            continue
        moments = [draw.randrange(FILM_BYTES) for _ in range(3 if options.quick else 20)]
        again = run(moments)
        shown = sorted(count / CHUNK_BYTES for count in again)
        print(
            f"{kind:10}{len(again):>4} times, sent again MiB: median {shown[len(shown) // 2]:.1f}, most {shown[-1]:.1f}"
        )
        line[kind] = max(again)
        worst = max(worst, *again)
    # Beside chunks, answers of a few dozen bytes are counted: a manifest for each try.
    ok = worst <= AGAIN_MAX + 4_096
    line["ratio"] = round(worst / AGAIN_MAX, 3)
    print(f"{'aim':10}at most {AGAIN_MAX / CHUNK_BYTES:.0f} MiB: {'kept' if ok else 'MISSED'}")
    print(json.dumps(line))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

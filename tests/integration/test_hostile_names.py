"""Names of others against a real disk: nothing outside the root is ever opened, whatever is swapped.

What was opened the kernel tells (`tests.opened`), not the code that is tested.
"""

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.destination_files import publish_new, safe_destination
from mesh.errors import DarkStreamError, PathError, SourceChangedError
from mesh.transfer import Manifest
from mesh.transfer_files import FileSource, make_manifest
from node.work.allowed_files import Allowed
from tests.opened import available, watched
from tests.unit.test_names import HOSTILE

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))

_AT_FDCWD, _EXCHANGE = -100, 2  # renameat2
SECRET = b"what nobody may read"
# Ways from inside the root to outside it, or to what is no file; each is laid by `trap`.
LINKS = {
    "to-file": "../outside/secret",
    "to-folder": "../outside",
    "absolute": "{outside}",
    "absolute-file": "{outside}/secret",
    "dangling": "../outside/new",
    "dangling-far": "/nonexistent/{pid}/x",
    "chain-1": "chain-2",
    "chain-2": "../outside",
    "loop": "loop",
    "up": "..",
    "upup": "../..",
    "top": "/",
    "self": ".",
    "proc": "/proc/self/root",
    "fd": "/proc/self/fd",
    "shm": "/dev/shm",
    "null": "/dev/null",
    "zero": "/dev/zero",
    "inside": "a",
    "inside-file": "a/film.mkv",
    "a/deep": "../../outside",
    "a/deep-file": "../../outside/secret",
    "a/b/deeper": "../../../outside",
    "a/ünïcödé": "../../outside",
    ".hidden": "../outside",
    "x" * 200: "../outside",
}


class Trap:
    """A root with links in every place, and a secret beside it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.outside = folder / "root", folder / "outside"
        (self.root / "a/b").mkdir(parents=True)
        (self.root / "a/film.mkv").write_bytes(b"film")
        self.outside.mkdir()
        (self.outside / "secret").write_bytes(SECRET)
        (self.outside / "film.mkv").write_bytes(SECRET)
        for name, target in LINKS.items():
            (self.root / name).symlink_to(target.format(outside=self.outside, pid=os.getpid()))
        os.mkfifo(self.root / "pipe")
        os.mkfifo(self.root / "a/pipe")
        with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(self.root):
            made.bind("socket")
        self.allowed = Allowed([self.root])


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path.resolve())


def names_over_links() -> Iterator[str]:
    """Each link as the file, as a folder on the way, and with ways back in."""
    for link in LINKS:
        yield from (link, f"{link}/film.mkv", f"{link}/new/film.mkv")
        yield from (f"{link}/../film.mkv", f"{link}/root/a/film.mkv", f"./{link}")
    yield from ("pipe", "a/pipe", "socket", "a", "a/b", "pipe/film.mkv", "a/film.mkv/film.mkv")
    yield from ("missing/film.mkv", "a/missing/film.mkv")


DESTINATIONS = [*HOSTILE, *names_over_links()]
SOURCES = [
    *(name for name in HOSTILE if name and "\\" not in name),
    *names_over_links(),
    *("", ".", "a/", "a//film.mkv", "a/./film.mkv", "a/b/../film.mkv", "a/film.mkv/", "missing"),
]


def digest_as_a_node_does(trap: Trap, text: str) -> Manifest:
    root, path = trap.allowed.source(text)
    return make_manifest(path, below=root)


def test_every_hostile_destination_is_refused_with_its_code(trap: Trap) -> None:
    assert len(set(DESTINATIONS)) >= 200
    with watched(trap.outside) as opened:
        for name in DESTINATIONS:
            with pytest.raises(PathError) as refused, safe_destination(trap.root, name):
                pytest.fail(f"{name!a} was not refused")
            assert refused.value.code == "path", name
            assert opened.names() == [], name


def test_every_hostile_source_is_refused_with_its_code(trap: Trap) -> None:
    """Through the rules of the node first, then at the walk alone, as after a swap."""
    film = make_manifest(trap.root / "a/film.mkv")
    assert len(set(SOURCES)) >= 200
    with watched(trap.outside) as opened:
        for name in SOURCES:
            text = f"{trap.root}/{name}"
            with pytest.raises(DarkStreamError) as refused:
                digest_as_a_node_does(trap, text)
            assert refused.value.code in {"path", "source_changed"}, name
            line = refused.value.line()
            assert line.isprintable(), ascii(line)
            if Path(text) == trap.root / "a/film.mkv":
                continue  # only its spelling was wrong
            with pytest.raises((SourceChangedError, ValueError)):
                make_manifest(Path(text), below=trap.root)
            with pytest.raises((SourceChangedError, ValueError)):
                FileSource(Path(text), film, below=trap.root)
            assert opened.names() == [], name


def test_sources_and_outputs_outside_are_refused(trap: Trap) -> None:
    hostile = [
        *(str(trap.outside / "secret"), str(trap.root), f"{trap.root}/", str(trap.root.parent)),
        *(f"{trap.root}-other/film.mkv", f"{trap.root}/../outside/secret", "a/film.mkv"),
        *(
            "/etc/passwd",
            "/proc/self/environ",
            "/dev/stdin",
            "/",
            "",
            ".",
            "~/film.mkv",
            "film.mkv",
        ),
        *(f"/{trap.root}/a/film.mkv", f"{trap.root}/a/film.mkv\x00", "\x00", "\udcff/film.mkv"),
        *("file:///etc/passwd", "http://localhost/film.mkv", "concat:/etc/passwd|/etc/hosts"),
        *("pipe:0", "-", "C:\\film.mkv", "\\\\server\\share\\film.mkv", "x" * 5_000, "/" * 5_000),
    ]
    with watched(trap.outside) as opened:
        for text in hostile:
            with pytest.raises(PathError):
                trap.allowed.source(text)
            if not text.startswith(f"{trap.root}/a"):
                with pytest.raises(PathError):
                    trap.allowed.split(text)
        for name in HOSTILE:
            # A person's path of another form (`a//b`) is the same path; what stays odd is refused.
            with contextlib.suppress(PathError):
                root, inner = trap.allowed.split(f"{trap.root}/{name}")
                assert root == trap.root
                assert ".." not in inner.split("/")
        assert opened.names() == []


def test_a_film_that_is_none_of_that_is_read_and_written(trap: Trap) -> None:
    """The refusals above are not for everything."""
    root, path = trap.allowed.source(f"{trap.root}/a/film.mkv")
    manifest = make_manifest(path, below=root)
    with contextlib.closing(FileSource(path, manifest, below=root)) as source:
        assert source.read(0, 4)[0] == b"film"
    root, name = trap.allowed.split(f"{trap.root}/new/ünïcödé/film.web.mp4")
    partial = trap.root / "partial"
    partial.write_bytes(b"result")
    with safe_destination(root, name, make_folders=True) as destination:
        publish_new(partial, destination)
    assert (trap.root / "new/ünïcödé/film.web.mp4").read_bytes() == b"result"


# --- any name, while links are swapped ------------------------------------------------------------


@contextlib.contextmanager
def swapping(trap: Trap) -> Generator[None]:
    """Turns folders and films of the root into links to outside and back, all the time.

    In one step: what a reader meets is one or the other, never nothing.
    """
    stop = threading.Event()
    places = [
        (trap.root / "a", trap.outside),
        (trap.root / "s", trap.outside),
        (trap.root / "s/film.mkv", trap.outside / "secret"),
    ]
    (trap.root / "s").mkdir(exist_ok=True)
    (trap.root / "s/film.mkv").write_bytes(b"film")

    exchange = ctypes.CDLL(None, use_errno=True).renameat2
    links = [trap.root / f".link-{number}" for number in range(len(places))]
    for link, (_, to) in zip(links, places, strict=True):
        link.symlink_to(to)

    def swap() -> None:
        while not stop.is_set():
            for link, (place, _) in zip(links, places, strict=True):
                for _ in range(2):
                    names = os.fsencode(link), os.fsencode(place)
                    done = exchange(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE)
                    assert done == 0, os.strerror(ctypes.get_errno())

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        yield
    finally:
        stop.set()
        swapper.join()


PIECES = st.sampled_from(
    [
        *LINKS,
        "a",
        "b",
        "s",
        "film.mkv",
        "..",
        ".",
        "",
        "new",
        "con",
        "\x00",
        "\udcff",
        "secret",
        "*",
    ]
)
ANY_NAME = st.one_of(st.lists(PIECES, max_size=6).map("/".join), st.text(max_size=80))


def one_of_everything(trap: Trap, name: str) -> None:
    """Every door that a name opens."""
    text = f"{trap.root}/{name}"
    with contextlib.suppress(DarkStreamError):
        manifest = digest_as_a_node_does(trap, text)
        path = Path(text)
        with contextlib.closing(FileSource(path, manifest, below=trap.root)) as source:
            assert source.read(0, manifest.size)[0] != SECRET
    with contextlib.suppress(DarkStreamError, ValueError):
        make_manifest(Path(text), below=trap.root)
    with contextlib.suppress(DarkStreamError):
        root, inner = trap.allowed.split(text)
        with safe_destination(root, inner, make_folders=True) as destination:
            destination.exists()
    with contextlib.suppress(DarkStreamError), safe_destination(trap.root, name):
        pass


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None
)
@given(ANY_NAME)
def test_no_name_opens_anything_outside(trap: Trap, name: str) -> None:
    with watched(trap.outside) as opened:
        one_of_everything(trap, name)
        assert opened.names() == []


def test_no_name_opens_anything_outside_while_links_are_swapped(trap: Trap) -> None:
    names = ["a/film.mkv", "s/film.mkv", "a/new", "s/new", "s/secret", "a/secret"]
    reads: list[int] = []

    @settings(max_examples=400, deadline=None)
    @given(st.sampled_from(names) | ANY_NAME)
    def any_name(name: str) -> None:
        one_of_everything(trap, name)

    with watched(trap.outside) as opened, swapping(trap):
        any_name()
        for turn in range(1_500):
            name = names[turn % len(names)]
            one_of_everything(trap, name)
            with contextlib.suppress(DarkStreamError):
                reads.append(make_manifest(trap.root / name, below=trap.root).size)
        assert opened.names() == []
    assert reads
    assert set(reads) == {4}


@pytest.mark.parametrize(
    "opener", [lambda path: path.open("rb"), lambda path: os.scandir(path.parent)]
)
def test_the_watch_sees_an_opener_that_follows_links(
    trap: Trap, opener: Callable[[Path], contextlib.AbstractContextManager[object]]
) -> None:
    with watched(trap.outside) as opened:
        with opener(trap.root / "to-folder/secret"):
            pass
        assert opened.names()

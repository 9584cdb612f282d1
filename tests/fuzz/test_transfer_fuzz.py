"""Anything at all, at the doors where others' bytes and names come in."""

import contextlib
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.destination_files import safe_destination
from mesh.download import Download
from mesh.errors import PathError, TransferError, WireError
from mesh.names import NAME_BYTES_MAX, checked_name
from mesh.transfer import BULK, ChunkRequest, Manifest, ManifestAnswer, checked
from mesh.transfer_files import PartialFile
from mesh.transport import CHUNK_BYTES, dial_order, endpoint, is_host

_PIECES = st.sampled_from(
    ["..", ".", "/", "\\", "a", "con", "é", "\x00", " ", ":", "~", "\u202e", "\ud800", "x" * 200]
)
NAMES = st.one_of(st.text(max_size=300), st.lists(_PIECES, max_size=12).map("".join))
WHOLE = BULK.encode(ChunkRequest(handle="film", offset=1, length=2))


@given(st.binary(max_size=500))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    with contextlib.suppress(WireError):
        BULK.decode(data)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_damaged_message_is_a_message_or_a_wire_error(at: int, flip: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[at] ^= flip
    with contextlib.suppress(WireError):
        BULK.decode(bytes(damaged))
    with contextlib.suppress(WireError):
        BULK.decode(WHOLE[:at])


_INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@given(_INT64, st.text(max_size=70), _INT64)
def test_any_manifest_is_sensible_or_refused(size: int, digest: str, chunk_bytes: int) -> None:
    manifest = Manifest(size=size, digest=digest, chunk_bytes=chunk_bytes)
    with contextlib.suppress(WireError):
        answer = BULK.decode(BULK.encode(ManifestAnswer(manifest=manifest)))
        assert checked(answer.manifest).chunks >= 0


@given(NAMES, st.booleans())
def test_any_name_is_refused_or_stays_below(name: str, windows: bool) -> None:
    try:
        parts = checked_name(name, windows=windows)
    except PathError:
        return
    assert "/".join(parts) == name
    for part in parts:
        assert part not in {"", ".", ".."}
        assert len(part.encode()) <= NAME_BYTES_MAX
        assert not set(part) & set("\x00\\\n")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
def test_no_name_reaches_outside_the_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    try:
        with safe_destination(root, name, make_folders=True) as destination:
            reached = destination.path.resolve()
    except PathError:
        return
    assert reached.is_relative_to(root.resolve())
    assert reached != root.resolve()
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@given(st.text(max_size=60), st.integers())
def test_any_address_is_refused_or_safe_in_a_url(host: str, port: int) -> None:
    try:
        url = endpoint(host, port)
    except ValueError:
        assert not is_host(host) or not 0 < port < 1 << 16
        return
    assert url.startswith("tcp://")
    assert url.endswith(f":{port}")
    assert not set(url) & set("; /\\\n@,\x00") - {"/"}
    assert url.count("/") == 2


@given(st.lists(st.text(max_size=20), max_size=30), st.none() | st.text(max_size=20))
def test_dial_order_is_bounded_and_without_repetition(hosts: list[str], last: str | None) -> None:
    order = dial_order(hosts, last)
    assert len(order) == len(set(order)) <= 8
    assert set(order) <= set(hosts)


ARRIVALS = st.lists(
    st.tuples(st.integers(-1, 9), st.booleans(), st.integers(0, 4_000), st.booleans()), max_size=60
)


@given(st.integers(0, 8), ARRIVALS)
def test_whatever_arrives_in_whatever_order_each_chunk_counts_once(
    chunks: int, arrivals: list[tuple[int, bool, int, bool]]
) -> None:
    manifest = Manifest(size=max(0, chunks * CHUNK_BYTES - 7), digest="0" * 64)
    now = 0
    core = Download(manifest, manifest.whole, bytearray(manifest.chunks), now)
    written: set[int] = set()
    try:
        for index, intact, passes_ms, lost in arrivals:
            now += passes_ms
            core.tick(now)
            while core.ask(now):
                pass
            if lost:
                core.lost(now)
            length = manifest.length(index) if 0 <= index < manifest.chunks else 1
            if core.receive(index * CHUNK_BYTES, length, intact, now) == "write":
                assert intact
                assert index not in written
                written.add(index)
            assert core.done == (len(written) == manifest.chunks)
            assert core.bytes_done == sum(map(manifest.length, written))
        core.lost(now)
        while not core.done:
            core.tick(now)
            while ask := core.ask(now):
                assert ask.index not in written
                assert core.receive(ask.offset, ask.length, True, now) == "write"
                written.add(ask.index)
    except TransferError:
        return
    assert written == set(range(manifest.chunks))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_journal_is_believed_only_as_far_as_the_bytes_agree(
    tmp_path: Path, journal: bytes, extra: bytes
) -> None:
    path = tmp_path / "x.part"
    manifest = Manifest(size=100, digest="0" * 64)
    partial = PartialFile(path, stays=True)
    partial.begin(manifest, manifest.whole)
    partial.close()
    noted = path.with_name("x.part.journal")
    noted.write_bytes((noted.read_bytes() if extra else b"") + journal + extra)
    assert partial.begin(manifest, manifest.whole) == b"\x00"
    partial.discard()

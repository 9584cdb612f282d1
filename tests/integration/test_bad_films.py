"""Everything bad that a film or an FFmpeg can be, given to real nodes: what the person sees of it.

One clear class and message each; the source is untouched, the nodes live, nothing is left behind.  The
tables are printed at the end of `make test-media`.
"""

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import psutil
import pytest

from node.media.convert import ConversionError, Media
from node.media.run_ffmpeg import FFmpegRunner
from tests.cluster import Node, cluster, form, wait_for
from tests.film_apart import media_of, nothing, now, quick
from tests.media_clips import AAC, SWEEP, X264, Clips, ffmpeg, make
from tests.working import children, files_of_work

pytestmark = pytest.mark.media
Record = Callable[[str, object], None]
LONG_ENOUGH_S = 24
"""For two chunks, in real nodes."""
FLIPS = 40


def film(path: Path) -> Path:
    picture = ["-f", "lavfi", "-i", f"testsrc2=s=160x120:r=25:d={LONG_ENOUGH_S}"]
    sound = ["-f", "lavfi", "-i", f"{SWEEP}:d={LONG_ENOUGH_S}"]
    faststart = ["-movflags", "+faststart"] if path.suffix == ".mp4" else []
    return make(path, *picture, *sound, *X264, "-preset", "fast", "-g", "25", *AAC, *faststart)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def flipped(source: Path, target: Path) -> Path:
    """Single bits of the packets turned over; header and index are left as they are."""
    data, dice = bytearray(source.read_bytes()), random.Random(5)
    for _ in range(FLIPS):
        at = dice.randrange(len(data) // 4, len(data) * 3 // 4)
        data[at] ^= 1 << dice.randrange(8)
    return write(target, data)


def lying(source: Path, target: Path) -> Path:
    """A Matroska header that claims ten minutes."""
    data = source.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # Duration, a double of milliseconds
    return write(target, data[:at] + struct.pack(">d", 600_000.0) + data[at + 8 :])


def changing(folder: Path, target: Path) -> Path:
    """Twelve seconds of one size, then twelve of another."""
    parts: list[bytes] = []
    for number, size in enumerate(("160x120", "320x240")):
        part = folder / f"{size}.ts"
        picture = ["-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d=12"]
        make(part, *picture, *X264, "-g", "25", "-output_ts_offset", str(12 * number))
        parts.append(part.read_bytes())
    joined = write(folder / "changing.ts", b"".join(parts))
    return make(target, "-i", str(joined), "-c", "copy")


def without_frames(source: Path, target: Path) -> None:
    """The sound of a film, and its picture's header alone."""
    with av.open(str(source)) as film, av.open(str(target), "w") as out:
        picture, sound = film.streams.video[0], film.streams.audio[0]
        out.add_stream_from_template(picture)
        copy = out.add_stream_from_template(sound)
        for packet in film.demux(sound):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)


def bad_films(folder: Path, aside: Path) -> dict[str, str]:
    """Writes them; each with the codes of which one is right, or `done`."""
    clips = Clips(aside)
    mkv, mp4, ts = (film(aside / f"sound.{kind}") for kind in ("mkv", "mp4", "ts"))
    for source in (mkv, mp4, ts):
        data, kind = source.read_bytes(), source.suffix
        name = kind.removeprefix(".")
        write(folder / f"cut_{name}{kind}", data[: len(data) * 6 // 10])
        flipped(source, folder / f"flipped_{name}{kind}")
    silent = make(aside / "silent.mkv", "-i", str(mkv), "-c", "copy", "-an")
    flipped(silent, folder / "flipped_silent.mkv")
    write(folder / "zeroed.mkv", _zeroed(mkv.read_bytes()))
    moov_last = make(aside / "last.mp4", "-i", str(mp4), "-c", "copy").read_bytes()
    write(folder / "cut_index.mp4", moov_last[: len(moov_last) * 9 // 10])
    lying(mkv, folder / "lying.mkv")
    shutil.copy(clips.get("sound.mp3"), folder / "no_video.mp3")
    for kind in ("mkv", "mp4"):
        without_frames(mp4, folder / f"no_frames_{kind}.{kind}")
    shutil.copy(clips.get("one_frame.mp4"), folder / "one_frame.mp4")
    make(folder / "8k.mp4", "-f", "lavfi", "-i", "testsrc2=s=7680x4320:r=25:d=0.12", *X264)
    make(folder / "odd.mkv", "-f", "lavfi", "-i", "testsrc2=s=161x121:r=25:d=1", "-c:v", "libx264",
         "-preset", "ultrafast", "-pix_fmt", "yuv444p")  # fmt: skip
    changing(aside, folder / "changing.mp4")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:30\n#EXTINF:24,\nfile://{mp4}\n#EXT-X-ENDLIST\n"
    write(folder / "playlist.m3u8", playlist.encode())
    write(folder / "hidden_list.mp4", playlist.encode())
    network = playlist.replace(f"file://{mp4}", "http://127.0.0.1:9/film.ts")
    write(folder / "network.mp4", network.encode())
    write(folder / "concat.mp4", f"ffconcat version 1.0\nfile '{mp4}'\n".encode())
    write(folder / "points_away.mov", _reference(f"file://{mp4}"))
    (folder / "link.mp4").symlink_to(mp4)
    write(folder / "empty.mp4", b"")
    write(folder / "text.mp4", b"just some text\n" * 200)
    write(folder / "noise.mkv", random.Random(6).randbytes(200_000))
    damaged = "damaged_source"
    return {
        "cut_mkv.mkv": damaged, "cut_mp4.mp4": damaged, "cut_ts.ts": damaged, "cut_index.mp4": "not_a_video",
        "flipped_mkv.mkv": damaged, "flipped_mp4.mp4": damaged, "flipped_ts.ts": damaged, "zeroed.mkv": damaged, "flipped_silent.mkv": damaged,
        "lying.mkv": damaged, "no_video.mp3": "no_video_stream", "no_frames_mkv.mkv": f"{damaged} not_a_video",
        "no_frames_mp4.mp4": f"{damaged} no_video_stream not_a_video", "one_frame.mp4": "done", "8k.mp4": "done",
        "odd.mkv": "done", "changing.mp4": "done", "playlist.m3u8": "refused_format",
        "hidden_list.mp4": "refused_format", "network.mp4": "refused_format", "concat.mp4": "refused_format",
        "points_away.mov": "no_video_stream not_a_video", "link.mp4": "path", "empty.mp4": "empty_source",
        "text.mp4": "not_a_video", "noise.mkv": "not_a_video",
    }  # fmt: skip


def _zeroed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(6_000) + data[middle + 6_000 :]


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def _reference(place: str) -> bytes:
    """A QuickTime reference movie: nothing but the place of another one."""
    url = place.encode() + b"\0"
    rdrf = _box(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(url)), url)
    header = _box(b"ftyp", b"qt  ", bytes(4), b"qt  ")
    return header + _box(b"moov", _box(b"rmra", _box(b"rmda", rdrf)))


def digests(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file of a folder."""
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def all_end(node: Node, jobs: list[str], timeout_s: float) -> list[dict[str, Any]]:
    def over() -> list[dict[str, Any]] | None:
        shown = [dict(node.cli("job", "show", job)) for job in jobs]
        return shown if all(job["state"] in ("done", "failed") for job in shown) else None

    return wait_for("all jobs are over", over, timeout_s)


def two_workers(nodes: list[Node]) -> None:
    """Forms a mesh of nodes with one slot each, so that a film may be split."""
    form(nodes, "--slots", "1")
    wait_for("all can work", lambda: all(n["slots"] for n in nodes[0].cli("nodes")["nodes"]), 60)


@pytest.mark.timeout(600)
def test_bad_films_on_real_nodes(tmp_path: Path, record_property: Record) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    with cluster(tmp_path, ["one", "two"]) as nodes:
        owner = nodes[1]
        expected = bad_films(owner.films, aside)
        before = digests(owner.films)
        two_workers(nodes)
        wrong: list[str] = []
        jobs: dict[str, str] = {}
        for name in expected:
            done = owner.call("submit", str(owner.films / name), "--profile", "web", "--json")
            said = json.loads(done.stdout)
            if said.get("jobs"):
                jobs[said["jobs"][0]["id"]] = name
            else:
                fault = said["faults"][0] if said.get("faults") else said
                wrong += seen(record_property, (name, "", "refused"), fault, expected[name])
        for job in all_end(owner, list(jobs), 300):
            name = jobs[job["id"]]
            way = "split" if (job["plan"] or {}).get("split") else "whole"
            fault = job["fault"] or {
                "code": "done",
                "what": str(job["result"]["output"]),
                "todo": "",
            }
            way = way if job["plan"] else "probe"
            wrong += seen(record_property, (name, way, job["state"]), fault, expected[name])
        assert not wrong
        changed = {k: v for k, v in digests(owner.films).items() if k in before and before[k] != v}
        assert not changed
        made = sorted(set(digests(owner.films)) - set(before))
        assert len(made) == sum(codes == "done" for codes in expected.values()), made
        assert all(node.status()["state"] == "member" for node in nodes)
        wait_for("no child is left", lambda: not children(nodes), 10)
        wait_for("no file is left", lambda: not [x for n in nodes for x in files_of_work(n)], 40)


def seen(
    record: Record, where: tuple[str, str, str], fault: dict[str, Any], codes: str
) -> list[str]:
    """Records what the person sees of (input, way, state); what is wrong with it."""
    name, way, state = where
    code, what, todo = (str(fault.get(key, "")) for key in ("code", "what", "todo"))
    what = what if state != "done" else f"{Path(what).name} is in place"
    line = {
        "input": name,
        "found in": way,
        "state": state,
        "code": code,
        "what": what,
        "to do": todo,
    }
    record("table", json.dumps({"what the person sees of bad films": line}))
    wrong = [] if code in codes.split() else [f"{name}: {code} ({what})"]
    if state != "done" and not todo:
        wrong.append(f"{name}: says nothing to do")
    return wrong


# --- FFmpeg that misbehaves -------------------------------------------------------------------------

WRAPPER = """#!/bin/sh
mode=$(cat "$(dirname "$0")/mode" 2>/dev/null)
for last; do :; done
case "$mode:$last:$*" in
  *:file:*:*{only}*)
    case "$mode" in
      hangs) while :; do sleep 1; done ;;
      crashes) kill -SEGV $$ ;;
      fills) while :; do head -c 500000 /dev/zero >> "${{last#file:}}"; sleep 0.01; done ;;
      prints) while :; do yes '[error] nothing is right' | head -n 20000 >&2; done ;;
      chatters) yes 'frame=1' ;;
    esac ;;
esac
exec {real} "$@"
"""
MODES = {
    "crashes": "encode_failed",
    "fills": "work_disk_full",
    "prints": "output_limit",
    "chatters": "output_limit",
}
DISK_MIB = 512


def wrapper(folder: Path, only: str) -> Path:
    """An FFmpeg that does what the file `mode` beside it says, when it writes a file."""
    program = folder / "ffmpeg"
    program.write_text(WRAPPER.format(real=ffmpeg(), only=only))
    program.chmod(0o755)
    return program


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, which may be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(disk)]
    if (
        os.name == "nt"
        or shutil.which("mount") is None
        or subprocess.run(words, check=False).returncode
    ):
        pytest.skip("no disk can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="the wrapper is a shell script")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["whole", "split"])
def test_a_bad_ffmpeg_on_real_nodes(
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
    way: str,
) -> None:
    program = wrapper(tmp_path, "slice.nut" if way == "split" else "")
    monkeypatch.setenv("DARKSTREAM_FFMPEG", str(program))
    with cluster(small_disk, ["one", "two"]) as nodes:
        owner = nodes[1]
        two_workers(nodes)
        wrong: list[str] = []
        for mode, code in MODES.items():
            source = film(owner.films / f"{mode}.mp4")
            before = digests(owner.films)
            (tmp_path / "mode").write_text(mode)
            options = [] if way == "split" else ["--no-split"]
            done = owner.call(
                "convert", str(source), "--profile", "web", *options, "--json", timeout_s=200
            )
            (tmp_path / "mode").write_text("")
            (job,) = json.loads(done.stdout)["jobs"]
            shown = owner.cli("job", "show", job["id"])
            assert bool((shown["plan"] or {}).get("split")) == (way == "split"), shown["plan"]
            fault = shown["fault"] or {"code": "done", "what": "x", "todo": ""}
            wrong += seen(record_property, (f"FFmpeg {mode}", way, shown["state"]), fault, code)
            assert digests(owner.films) == before
            assert all(node.status()["state"] == "member" for node in nodes)
            wait_for("no child is left", lambda: not children(nodes), 10)
            wait_for(
                "no file is left", lambda: not [x for n in nodes for x in files_of_work(n)], 40
            )
        assert not wrong
        again = owner.call(
            "convert", str(owner.films / "fills.mp4"), "--profile", "web", timeout_s=120
        )
        assert again.returncode == 0, "the nodes work as before: " + again.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="the wrapper is a shell script")
def test_an_ffmpeg_that_hangs_is_ended(tmp_path: Path, record_property: Record) -> None:
    """Below a node, whose limit is five minutes: the limit is the only difference."""
    program = wrapper(tmp_path, "")
    good = media_of(str(program))
    media = Media(
        runner=FFmpegRunner(),
        ffmpeg=good.ffmpeg,
        encoders=good.encoders,
        python=sys.executable,
        stall_ms=1_500,
    )
    source = film(tmp_path / "film.mp4")
    probe = now(media.probe(source))
    (tmp_path / "mode").write_text("hangs")
    with pytest.raises(ConversionError) as caught:
        now(media.convert(source, tmp_path / "out", probe, quick("web"), on_progress=nothing))
    error = caught.value.error
    fault = {"code": error.code, "what": error.what, "todo": error.todo}
    assert not seen(record_property, ("FFmpeg hangs", "whole", "failed"), fault, "stalled")
    mine = psutil.Process().children(recursive=True)
    assert not [child for child in mine if str(program) in " ".join(child.cmdline())]

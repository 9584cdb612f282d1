"""Names of others: about a hundred that must not become paths, and those that films really have."""

import pytest

from mesh.errors import PathError
from mesh.names import checked_name

HOSTILE = [
    *("", "/", "//", "/etc/passwd", "//etc/passwd", "///", "/film.mkv", "\\", "\\film.mkv"),
    *(
        ".",
        "..",
        "../film.mkv",
        "../../etc/passwd",
        "a/..",
        "a/../b",
        "a/../../b",
        "a/b/../../../c",
    ),
    *("./film.mkv", "a/./b", "a/.", "a//b", "a/b/", "a///b", ".//a", "..//a", "a/b//", "/a/../b"),
    *("..\\film.mkv", "a\\..\\b", "C:\\film.mkv", "\\\\server\\share", "\\\\?\\C:\\x", "a\\b"),
    *(
        "a\x00b",
        "\x00",
        "film.mkv\x00.txt",
        "a/\x00/b",
        "a\nb",
        "a\rb",
        "a\tb",
        "\x1b[31mred",
        "a\x7fb",
    ),
    *("a\x80b", "a\x9fb", "a\u2028b", "a\u2029b", "\u202egnp.exe", "a\u200eb", "a\u200fb"),
    *(
        "a\u202ab",
        "a\u202bb",
        "a\u202cb",
        "a\u202db",
        "a\u2066b",
        "a\u2067b",
        "a\u2068b",
        "a\u2069b",
    ),
    *("con", "CON", "Con.mkv", "con.tar.gz", "prn", "aux", "AUX.mp4", "nul", "NUL.", "nul .txt"),
    *(
        "com1",
        "COM9.mkv",
        "com0",
        "lpt1",
        "LPT9.mkv",
        "com¹",
        "lpt³.x",
        "conin$",
        "CONOUT$",
        "clock$",
    ),
    *(
        "a/con",
        "con/a",
        "a/nul.mkv/b",
        "film.",
        "film ",
        "film..",
        "film. .",
        "a./b",
        "a /b",
        "...",
    ),
    *(
        ". ",
        ".. ",
        " .",
        "a/...",
        "a/.. /b",
        "x" * 256,
        "é" * 128,
        "a/" + "x" * 256,
        "a/" * 64 + "a",
    ),
    *(
        "x/" * 2_100 + "x",
        "\ud800",
        "film\udcff.mkv",
        "\udc80/../x",
        "a/\udfff",
        ".. /x",
        "../",
        "..//",
    ),
]

REAL = [
    *(
        "film.mkv",
        "a/b/c.mkv",
        ".hidden",
        "..film",
        "film..mkv",
        "...film",
        "Kühe & Übel (2019).mp4",
    ),
    *(
        'Who? What: "a" <b>|*.mkv',
        "console.mkv",
        "com10.mkv",
        "nullify",
        "日本語/映画.mkv",
        "👩‍👩‍👧.mp4",
    ),
    *(
        "x" * 255,
        "é" * 127,
        "a/" * 63 + "a",
        "~",
        "$HOME",
        "-rf",
        "film (1).mkv",
        " leading",
        "cafe\u0301",
    ),
]


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:40])
def test_hostile_names_are_refused(name: str, windows: bool) -> None:
    with pytest.raises(PathError) as refused:
        checked_name(name, windows=windows)
    assert refused.value.line().isascii()
    assert len(refused.value.line()) < 1_000


def test_there_are_many_of_them() -> None:
    assert len(set(HOSTILE)) >= 80


@pytest.mark.parametrize("name", REAL, ids=lambda name: ascii(name)[:40])
def test_names_that_films_have_are_kept(name: str) -> None:
    assert "/".join(checked_name(name, windows=False)) == name


@pytest.mark.parametrize(
    "name", ["a:b", "C:", "a<b", "a>b", 'a"b', "a|b", "a?b", "a*b", "film.mkv:x"]
)
def test_what_only_windows_cannot_store(name: str) -> None:
    assert checked_name(name, windows=False) == (name,)
    with pytest.raises(PathError):
        checked_name(name, windows=True)

import pytest

from node.cli.show import NODES_NAMED_MAX, result_lines, terminal_table

RESULT = {
    "output": "/out/film.mp4",
    "bytes": 1_000,
    "frames_in": 100,
    "frames_out": 100,
    "duration_ms": 4_000,
    "node": "one",
    "encoder": "libx264",
    "encode_ms": 2_500,
    "total_ms": 3_000,
}


def job(*tasks: dict[str, object]) -> dict[str, object]:
    return {"source": "/in/film.mkv", "result": RESULT, "tasks": list(tasks)}


def chunk(*attempts: tuple[str, bool]) -> dict[str, object]:
    tried = [{"node": node, "fault": None if well else {"code": "x"}} for node, well in attempts]
    return {"kind": "chunk", "attempts": tried}


def test_a_film_in_one_piece_names_its_encoder_and_the_time() -> None:
    whole = {"kind": "whole", "attempts": [{"node": "one", "fault": None}]}
    expected = "  encoded by one with libx264 in 2.5 s; 3.0 s in all"
    assert result_lines(job(whole))[-1] == expected
    assert result_lines(job())[-1] == expected


def test_a_film_in_pieces_names_those_who_made_them_and_not_who_failed() -> None:
    made = job(
        chunk(("two", True)),
        chunk(("bad", False), ("one", True)),
        chunk(("two", True)),
        {"kind": "assemble", "attempts": [{"node": "owner", "fault": None}]},
    )
    assert result_lines(made)[-1] == "  3 chunks encoded by one, two with libx264; 3.0 s in all"


def test_how_a_film_looks_is_told_where_it_was_measured() -> None:
    assert "VMAF" not in result_lines(job())[1]
    shown = {**job(), "result": {**RESULT, "vmaf": 93.456}}
    assert result_lines(shown)[1].endswith("; VMAF 93.5 and more")


def test_many_nodes_are_counted() -> None:
    many = job(*(chunk((f"n{number:02}", True)) for number in range(NODES_NAMED_MAX + 3)))
    assert "n07 and 3 more with libx264" in result_lines(many)[-1]


COLUMNS = ("ID", "STATE", "PROGRESS", "PROFILE", "NODE", "SUBMITTED", "SOURCE")
JOB_ID = "j06h1spku74imo484dc"
ROW = (JOB_ID, "running", "encoding 42 %", "archive", "anna", "11-27 19:33:50", "/films/a long one")


@pytest.mark.parametrize(
    ("width", "fits"), [("120", True), ("80", True), ("62", True), ("60", False)]
)
def test_an_id_stays_in_one_piece(
    width: str, fits: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert terminal_table(COLUMNS, [ROW]) is fits
    out = capsys.readouterr().out
    assert (JOB_ID in out) is fits
    assert all(len(line) <= int(width) for line in out.splitlines())

"""Live progress: the parts of a film in pieces are shown as one film."""

from node.work.progress import STALE_MS, FilmProgress, Progress, ProgressBoard, together


def part(attempt: str, phase: str = "encoding", frames: int = 0, **v: object) -> Progress:
    given = {"frames_total": 100, "fps": 25.0, "speed": 1.0} | v
    return Progress(
        job="j", attempt=attempt, node=f"n{attempt}", phase=phase, frames=frames, **given
    )  # type: ignore[arg-type]  # values of a test's own words


def film(done: int, *leased: str, total: int = 400) -> FilmProgress:
    return FilmProgress(done=done, total=total, leased={attempt: attempt for attempt in leased})


def test_parts_that_run_and_parts_that_are_done_make_one_film() -> None:
    parts = [part("a", frames=40), part("b", "verifying", 10), part("c", "fetching")]
    shown = together(parts, film(100, "a", "b", "c"))
    assert shown is not None
    assert (shown.phase, shown.frames, shown.frames_total) == ("encoding", 240, 400)
    assert (shown.fps, shown.speed, shown.node) == (25.0, 1.0, "na")


def test_what_the_ledger_counts_is_not_counted_twice() -> None:
    parts = [part("a", "verifying", 100), part("b", frames=10)]
    shown = together(parts, film(100, "b"))
    assert shown is not None
    assert shown.frames == 110
    assert together(parts, film(100)) is None
    assert together([], None) is None


def test_of_a_part_that_runs_twice_counts_who_is_further() -> None:
    parts = [part("a", frames=40), part("b", frames=10), part("c", frames=5)]
    twice = FilmProgress(done=100, total=400, leased={"a": "one", "b": "one", "c": "other"})
    shown = together(parts, twice)
    assert shown is not None
    assert shown.frames == 145


def test_the_assembly_is_shown_as_it_runs() -> None:
    end = part("e", "verifying", 300, frames_total=400)
    assert together([end], film(400, "e")) == end
    assert together([end], None) == end


def test_the_board_knows_each_part_until_it_is_old() -> None:
    now_ms = 0
    told: list[object] = []
    board = ProgressBoard("anna", told.append, lambda: now_ms)  # type: ignore[arg-type]  # a name is a node id here
    board.report(part("a"))
    board.report(part("b"))
    assert len(told) == 2, "each part tells of itself"
    assert board.take_news() == ["j"]
    assert board.take_news() == []
    now_ms = STALE_MS
    board.report(part("b", frames=9))
    now_ms = STALE_MS + 1
    assert [p.attempt for p in board.of("j")] == ["b"]
    assert [p.frames for p in board.running()] == [9]
    board.over("j")
    assert board.of("j") == []

"""How fast bytes come, from their counts and the time alone."""

from node.faces.views import progress_view
from node.work.progress import INTERVAL_MS, Pace, Progress

MB = 1_000_000


def test_it_is_told_at_the_beginning_the_end_and_at_intervals() -> None:
    pace = Pace()
    told = [(now, pace.note(now * 20_000, 40 * MB, now)) for now in range(0, 2_001, 50)]
    assert [now for now, rate in told if rate is not None] == [0, 500, 1_000, 1_500, 2_000]
    assert [rate for _, rate in told if rate] == [20 * MB] * 4


def test_what_was_there_before_does_not_count() -> None:
    pace = Pace()
    assert pace.note(500 * MB, 900 * MB, 0) == 0
    assert pace.note(510 * MB, 900 * MB, INTERVAL_MS) == 20 * MB


def test_a_change_is_seen_within_two_seconds() -> None:
    pace, done = Pace(), 0
    rates = []
    for now in range(0, 4_001, INTERVAL_MS):
        rates.append(pace.note(done, 10**9, now))
        done += (20 if now < 2_000 else 40) * MB // 2
    assert rates[4] == 20 * MB
    assert rates[-1] is not None
    assert rates[-1] > 38 * MB


def test_a_file_that_comes_at_once_has_a_speed_too() -> None:
    pace = Pace()
    pace.note(0, MB, 0)
    assert pace.note(MB, MB, 0) == 1_000 * MB


def test_a_face_shows_rate_and_time_left() -> None:
    live = Progress(
        job="j", attempt="a", node="n", phase="fetching", bytes_done=5, bytes_total=25, bytes_s=10
    )
    shown = progress_view(live, {})
    assert shown is not None
    assert (shown.bytes_s, shown.left_s) == (10, 2)
    unknown = progress_view(Progress(job="j", attempt="a", node="n", phase="fetching"), {})
    assert unknown is not None
    assert unknown.left_s is None

"""Results come to their places and originals are never lost: killed before every step, and done again."""

import errno
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ledger.jobs import Job
from mesh import clock
from mesh.errors import ConflictError, NotFoundError, SourceChangedError, TransferError
from mesh.transfer import Manifest, kept_inode
from mesh.transfer_files import digest_file
from node.media.profiles import BUILT_IN, Profile, PublishPolicy
from node.work.allowed_files import Allowed
from node.work.publishing import DAY_MS, TRASH, Publishing

ORIGINAL = b"the film as it was " * 1_000
RESULT = b"the result " * 700
CHANGES = frozenset(
    {
        "os.link",
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.chmod",
        "os.chown",
        "os.utime",
    }
)
STEPS_MAX = 60


@dataclass
class Place:
    folder: Path
    policy: PublishPolicy
    output: str = "film.mp4"

    def __post_init__(self) -> None:
        self.films = self.folder / "films"
        self.films.mkdir(parents=True)
        self.film = self.films / "film.mp4"
        self.film.write_bytes(ORIGINAL)
        self.film.chmod(0o640)
        os.utime(self.film, (1_000_000, 2_000_000))
        self.staging = self.folder / "staged"
        self.stage()
        self.publishing = Publishing(
            allowed=Allowed([self.films]), records=self.folder / "home" / "trash"
        )
        found = self.film.stat()
        profile: Profile = BUILT_IN["web"].model_copy(update={"publish": self.policy})
        self.job = Job(
            id="j1", seq=1, state="publishing", planned=1, owner="anna", source=str(self.film),
            source_bytes=found.st_size, source_mtime_ns=found.st_mtime_ns,
            source_inode=kept_inode(found.st_ino), output=str(self.films / self.output), overwrite=0,
            profile="web", profile_json=profile.to_json(), priority=0, tenant="", split=1,
            source_digest=digest_file(self.film), created_at_ms=1, updated_at_ms=1,
        )  # fmt: skip
        self.expected = Manifest(size=len(RESULT), digest=digest_file(self.staging))
        self.result = self.films / self.output
        self.aside = self.films / TRASH / "j1" / "film.mp4"

    def stage(self) -> None:
        self.staging.write_bytes(RESULT)

    def publish(self) -> None:
        self.publishing.publish(self.job, self.staging, self.expected)

    def holds(self, content: bytes) -> list[Path]:
        return [p for p in self.films.rglob("*") if p.is_file() and p.read_bytes() == content]


REPLACE = PublishPolicy(replace=True, times="source", permissions="source")


@pytest.fixture(params=["film.mp4", "film.mkv"], ids=["in place", "beside"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path, REPLACE, request.param)


def killed_before(step: int, work: Callable[[], object]) -> bool:
    """Runs it in a child that dies before its n-th change of the disk; whether it came so far."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child runs on one thread alone
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137
    left = step

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        if event in CHANGES or writes:
            left -= 1
            if left < 0:
                os._exit(137)

    sys.addaudithook(watch)
    try:
        work()
    except BaseException:  # noqa: BLE001 - the child must not become a second pytest
        os._exit(1)
    os._exit(0)


def replaced(place: Place) -> None:
    assert place.result.read_bytes() == RESULT
    assert place.aside.read_bytes() == ORIGINAL
    assert place.film.exists() == (place.result == place.film)
    assert not place.staging.exists()


def restored(place: Place) -> None:
    assert place.film.read_bytes() == ORIGINAL
    assert place.film.stat().st_mtime_ns == place.job.source_mtime_ns
    assert len(place.holds(RESULT)) == 1
    assert not (place.films / TRASH).exists()
    assert list((place.folder / "home" / "trash").iterdir()) == []


def test_a_film_is_replaced_and_restored(place: Place) -> None:
    place.publish()
    replaced(place)
    found = place.result.stat()
    assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o640, 2_000_000 * 10**9)
    place.publish()  # the commit was lost: it is asked again
    replaced(place)
    back = place.publishing.restore(place.job)
    restored(place)
    assert Path(back.result).read_bytes() == RESULT
    with pytest.raises(NotFoundError):
        place.publishing.restore(place.job)


def test_whatever_step_a_crash_comes_before_the_original_has_a_name(place: Place) -> None:
    for step in range(STEPS_MAX):
        if not killed_before(step, place.publish):
            break
        # Whoever looks now finds the original, and something whole under its name or the result's.
        assert place.holds(ORIGINAL), step
        assert place.film.exists() or place.result.exists(), step
        for path in (place.film, place.result):
            assert not path.exists() or path.read_bytes() in (ORIGINAL, RESULT), step
    else:
        raise AssertionError("it never came to its end")
    assert step > 5
    place.publish()
    replaced(place)


@pytest.mark.parametrize("step", range(14))
def test_a_crash_is_followed_by_the_whole_once_more(place: Place, step: int) -> None:
    killed_before(step, place.publish)
    place.publish()
    replaced(place)
    place.publishing.restore(place.job)
    restored(place)


@pytest.mark.parametrize("step", range(14))
def test_a_job_that_is_given_up_after_a_crash_leaves_the_film_as_it_was(
    place: Place, step: int
) -> None:
    killed_before(step, place.publish)
    published = place.result == place.film and place.film.read_bytes() == RESULT
    place.publishing.undo(place.job)
    if published:  # a result in its place is not taken away: the job ends as done, or is restored
        place.publishing.restore(place.job)
    assert place.film.read_bytes() == ORIGINAL
    assert not place.aside.exists()


@pytest.mark.parametrize("step", range(10))
def test_a_crash_while_restoring_is_followed_by_the_whole_once_more(
    place: Place, step: int
) -> None:
    place.publish()
    came = killed_before(step, lambda: place.publishing.restore(place.job))
    assert place.holds(ORIGINAL)
    assert place.holds(RESULT)
    if came and (place.folder / "home" / "trash" / "j1.json").exists():
        place.publishing.restore(place.job)
    assert place.film.read_bytes() == ORIGINAL
    assert len(place.holds(RESULT)) == 1


def test_a_film_that_changed_is_not_replaced(place: Place) -> None:
    place.film.write_bytes(b"another film")
    with pytest.raises(SourceChangedError):
        place.publish()
    assert place.film.read_bytes() == b"another film"
    assert not place.aside.exists()


def test_another_file_in_the_way_is_never_written_over(tmp_path: Path) -> None:
    place = Place(tmp_path, REPLACE, "film.mkv")
    place.result.write_bytes(b"somebody's")
    with pytest.raises(ConflictError):
        place.publish()
    assert place.result.read_bytes() == b"somebody's"
    place.publishing.undo(place.job)
    assert place.film.read_bytes() == ORIGINAL
    assert not (place.films / TRASH).exists()


def _secured(place: Place, step: int) -> bool:
    killed_before(step, place.publish)
    return place.aside.exists()


def test_a_film_written_anew_after_it_was_secured_stays(tmp_path: Path) -> None:
    place = Place(tmp_path, REPLACE)
    step = next(n for n in range(STEPS_MAX) if _secured(place, n))
    assert step
    place.film.unlink()
    place.film.write_bytes(b"a new film")
    with pytest.raises(ConflictError):
        place.publish()
    assert place.film.read_bytes() == b"a new film"
    assert place.aside.read_bytes() == ORIGINAL


def test_what_has_the_films_name_now_is_not_restored_over(place: Place) -> None:
    place.publish()
    place.film.write_bytes(b"a new film")
    with pytest.raises(ConflictError):
        place.publishing.restore(place.job)
    assert place.film.read_bytes() == b"a new film"
    assert place.aside.read_bytes() == ORIGINAL


def test_a_lost_staging_is_asked_for_again(place: Place) -> None:
    place.staging.write_bytes(b"torn")
    with pytest.raises(TransferError):
        place.publish()
    place.staging.unlink()
    with pytest.raises(TransferError):
        place.publish()
    assert place.film.read_bytes() == ORIGINAL
    place.stage()
    place.publish()
    replaced(place)


def test_a_disk_without_links_moves_the_original(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    for step in range(STEPS_MAX):
        if not killed_before(step, place.publish):
            break
        assert place.holds(ORIGINAL), step
    place.publish()
    replaced(place)


def test_days_in_the_trash(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.publish()
    trash = place.publishing

    def later(days: int) -> None:
        now = clock.wall_ms() + days * DAY_MS
        monkeypatch.setattr(clock, "wall_ms", lambda: now)
        hours = clock.monotonic_ms() + days * DAY_MS
        monkeypatch.setattr(clock, "monotonic_ms", lambda: hours)

    trash.sweep(lambda _: True)
    later(29)
    trash.sweep(lambda _: True)
    assert place.aside.exists()
    later(2)
    trash.sweep(lambda _: False)  # of a job that did not end it may be the only copy
    assert place.aside.exists()
    later(1)
    trash.sweep(lambda _: True)
    assert not (place.films / TRASH).exists()
    assert place.result.read_bytes() == RESULT


@pytest.mark.parametrize(
    ("policy", "mode", "mtime"),
    [
        (PublishPolicy(), 0o666, None),
        (PublishPolicy(permissions="source"), 0o640, None),
        (PublishPolicy(times="source"), 0o666, 2_000_000),
    ],
)
def test_permissions_and_times_by_policy(
    tmp_path: Path, policy: PublishPolicy, mode: int, mtime: int | None
) -> None:
    place = Place(tmp_path, policy, "film.web.mp4")
    place.publish()
    found = place.result.stat()
    umask = os.umask(0)
    os.umask(umask)
    assert found.st_mode & 0o777 == mode & ~(0 if policy.permissions == "source" else umask)
    assert (int(found.st_mtime) == mtime) == (mtime is not None)
    assert place.film.read_bytes() == ORIGINAL


def test_without_replace_a_film_is_never_its_own_output(tmp_path: Path) -> None:
    place = Place(tmp_path, PublishPolicy(), "film.mp4")
    place.job = replace(place.job, overwrite=1)
    with pytest.raises(ConflictError):
        place.publish()
    assert place.film.read_bytes() == ORIGINAL

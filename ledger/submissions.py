"""Commands that make new jobs."""

from dataclasses import dataclass
from typing import Final

from ledger.vocabulary import COMMANDS
from mesh.codec import value

JOBS_PER_COMMAND_MAX: Final = 1_000


@value
@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One source file, one profile, one output.

    `source` and `output` are absolute paths on the owner's machine and mean nothing elsewhere.
    `profile` is the name, `profile_json` its whole definition at the time of submission, so that a
    later change of the profile does not change the job.
    """

    id: str
    owner: str
    source: str
    source_bytes: int
    source_mtime_ns: int
    source_inode: int
    output: str
    overwrite: bool
    profile: str
    profile_json: str
    priority: int
    tenant: str
    split: bool


@COMMANDS.kind("job.submit")
@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitJobs:
    """New jobs, state `queued`, in their order."""

    jobs: tuple[JobSpec, ...]


@COMMANDS.kind("job.submit_films")
@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitFilms:
    """New jobs of one owner that differ in their films alone, state `queued`, in their order (schema 2).

    What differs is in columns of equal length, one place a film: a quarter of the bytes of as many
    `JobSpec`, and a fifth of the time to read them.
    """

    owner: str
    profile: str
    profile_json: str
    overwrite: bool
    priority: int
    tenant: str
    split: bool
    ids: tuple[str, ...]
    sources: tuple[str, ...]
    source_bytes: tuple[int, ...]
    source_mtimes_ns: tuple[int, ...]
    source_inodes: tuple[int, ...]
    outputs: tuple[str, ...]


@COMMANDS.kind("job.submit_placed")
@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitPlacedFilms(SubmitFilms):
    """The same for certain nodes alone: `place` says which (ledger.placing; schema 3)."""

    place: tuple[str, ...]

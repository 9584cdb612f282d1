"""Lists the jobs that only this node knew when others went on without it, in a file of its home."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Final

from ledger.jobs import Job
from ledger.queries import Reader
from mesh.errors import StorageError
from node.settings.home_paths import LEDGER_FILE

PAGE: Final = 500
_SHOWN: Final = (
    *("id", "state", "source", "output", "profile", "owner", "tenant", "created_at_ms"),
    *("finished_at_ms", "error_code", "error"),
)


def write_left_behind(home: Path, former: Path, present: Reader) -> tuple[Path, int]:
    """Compares the ledger set aside with the present one; the file and how many jobs it names.

    `unknown`: the mesh has no such job; `ended`: it ended here, and the mesh does not know that (it
    is done again).  Raises `StorageError`.
    """
    try:
        with closing(Reader(str(former / LEDGER_FILE))) as past:
            found = [told for job in _jobs(past) if (told := _told(job, present.job(job.id)))]
        path = home / f"left-behind-{former.name}.json"
        made = path.with_name(f".{path.name}.new")
        made.write_text(json.dumps({"jobs": found}, indent=1), "utf-8")
        made.replace(path)
    except OSError as error:
        raise StorageError(f"{home}: {error}", "check the data directory") from None
    return path, len(found)


def _jobs(past: Reader) -> Iterator[Job]:
    before: int | None = None
    while page := past.jobs(limit=PAGE, before_seq=before):
        yield from page
        before = page[-1].seq


def _told(former: Job, present: Job | None) -> dict[str, object] | None:
    if present is not None and (not former.is_final or present.state == former.state):
        return None
    shown = asdict(former)
    return {
        "difference": "unknown" if present is None else "ended",
        **{name: shown[name] for name in _SHOWN},
    }

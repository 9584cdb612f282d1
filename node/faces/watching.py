"""Watched folders as the faces see and change them."""

import secrets
from typing import Final

from pydantic import ValidationError

from ledger.jobs import Watch
from ledger.orders import AddWatch, RemoveWatch
from ledger.queries import Reader
from mesh import clock
from mesh.errors import ConflictError, NotFoundError, UsageError
from mesh.ids import sortable_id
from node.faces.feed import names_of
from node.faces.mesh_view import Parts
from node.faces.profiles import with_definition
from node.gateway.work_models import Watches, WatchInfo, WatchRequest
from node.work.wanted import profile_of
from node.work.watch_rules import WatchSettings

_NO_FILE: Final = "film"
"""Below an output folder, to see whether it may be written at all."""


async def add(parts: Parts, request: WatchRequest) -> WatchInfo:
    """Watches a folder of this machine."""
    asked = request.submit
    if len(asked.paths) != 1:
        raise UsageError("a watch has one folder", "add each folder by itself")
    folder = str(parts.folder_of(asked.paths[0], asked.output))
    known = await parts.replica.read(lambda reader: with_definition(reader, asked))
    profile = profile_of(known)
    # `dry_run` and `once` say nothing here: each content is converted once.
    kept = known.model_copy(update={"paths": [folder], "dry_run": False, "once": False})
    settings = WatchSettings(request=kept, filters=request.filters)
    watch = sortable_id("w", clock.wall_ms(), secrets.token_bytes(5))
    command = AddWatch(
        id=watch,
        node=parts.own,
        folder=folder,
        profile=profile.name,
        settings=settings.model_dump_json(exclude_defaults=True),
    )
    await parts.proposer.commit(command, cause=watch)
    return await _one(parts, watch)


async def listed(parts: Parts) -> Watches:
    """All watched folders."""

    def read(reader: Reader) -> Watches:
        names = names_of(reader)
        return Watches(
            watches=[_info(parts, w, names.get(w.node, w.node)) for w in reader.watches()]
        )

    return await parts.replica.read(read)


async def remove(parts: Parts, watch: str, by: str) -> WatchInfo:
    """Watches no more."""
    found = await _one(parts, watch)
    await parts.proposer.commit(RemoveWatch(id=found.id, by=by), cause=found.id)
    return found


async def _one(parts: Parts, watch: str) -> WatchInfo:
    found = [one for one in (await listed(parts)).watches if one.id.startswith(watch)]
    if len(found) > 1:
        raise ConflictError(f"several watches begin with {watch}", "give more of the id")
    if not found:
        raise NotFoundError(f"no watch {watch}", "see `mesh-cli watch list`")
    return found[0]


def _info(parts: Parts, watch: Watch, name: str) -> WatchInfo:
    told = WatchInfo(id=watch.id, node=name, folder=watch.folder, profile=watch.profile)
    try:
        settings = WatchSettings.model_validate_json(watch.settings)
    except ValidationError:
        return told.model_copy(update={"fault": "a newer version wrote its settings"})
    more: dict[str, object] = {"output": settings.request.output, "filters": settings.filters}
    if (state := parts.watched().get(watch.id)) is not None:
        more |= {"counts": dict(state.counts), "fault": state.fault}
    return told.model_copy(update=more)

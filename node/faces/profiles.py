"""Profiles as the faces see and change them: the built-in ones, and those that the ledger keeps."""

import json
from collections.abc import Callable
from typing import Final

from ledger.jobs import Profile as Kept
from ledger.orders import PutProfile, RemoveProfile
from ledger.queries import Reader
from mesh.errors import ConflictError, NotFoundError, UsageError
from node.faces.mesh_view import Parts
from node.gateway.models import SubmitRequest
from node.gateway.profile_models import (
    ProfileInfo,
    ProfilesPage,
    PutProfileRequest,
    RemovedProfile,
)
from node.media.profiles import BUILT_IN, Profile, profile_from_json

_SCHEMA: Final = 3
"""The form of the ledger that holds profiles."""


class Profiles:
    """`ProfileService` from this node's replica; `parts` gives None, `member` raises without a mesh."""

    def __init__(
        self, name: str, parts: Callable[[], Parts | None], member: Callable[[], Parts]
    ) -> None:
        self._name = name
        self._parts = parts
        self._member = member

    async def list(self) -> ProfilesPage:
        """The built-in ones, then those of the mesh by name."""
        parts = self._parts()
        kept = await parts.replica.read(lambda reader: reader.profiles()) if parts else ()
        own = [_kept(one) for one in kept if one.name not in BUILT_IN]
        return ProfilesPage(profiles=[*map(_built_in, BUILT_IN.values()), *own])

    async def show(self, name: str) -> ProfileInfo:
        """One of them."""
        if name in BUILT_IN:
            return _built_in(BUILT_IN[name])
        parts = self._parts()
        kept = await parts.replica.read(lambda reader: reader.profile(name)) if parts else None
        if kept is None:
            raise NotFoundError(f"no profile {name}", "see `mesh-cli profiles list`")
        return _kept(kept)

    async def put(self, request: PutProfileRequest) -> ProfileInfo:
        """Adds one or replaces it."""
        profile = profile_from_json(request.definition)
        if profile.name in BUILT_IN:
            raise ConflictError(f"{profile.name} is built in", "give yours another name")
        await self._commit(
            PutProfile(name=profile.name, definition=profile.to_json(), by=self._name)
        )
        return await self.show(profile.name)

    async def remove(self, name: str) -> RemovedProfile:
        """Removes one."""
        if name in BUILT_IN:
            raise ConflictError(f"{name} is built in", "leave it; nobody has to use it")
        await self._commit(RemoveProfile(name=name, by=self._name))
        return RemovedProfile(name=name)

    async def _commit(self, command: PutProfile | RemoveProfile) -> None:
        parts = self._member()
        if await parts.replica.read(lambda reader: reader.schema()) < _SCHEMA:
            raise ConflictError(
                "a node of the mesh is too old to know profiles of one's own", "update all nodes"
            )
        await parts.proposer.commit(command, cause="profiles")


def is_defined(request: SubmitRequest) -> bool:
    """Whether the profile is known without the ledger: its text is there, or it is built in."""
    return bool(request.definition) or request.profile in BUILT_IN


def with_definition(reader: Reader, request: SubmitRequest) -> SubmitRequest:
    """The request with the profile's text, where its name is one that the ledger keeps."""
    if is_defined(request):
        return request
    kept = reader.profile(request.profile)
    if kept is None:
        names = ", ".join((*BUILT_IN, *(one.name for one in reader.profiles())))
        raise UsageError(f"unknown profile {request.profile!r}", f"use one of {names[:400]}")
    return request.model_copy(update={"definition": kept.definition})


def _built_in(profile: Profile) -> ProfileInfo:
    return _info(profile, built_in=True, updated_at_ms=None)


def _kept(kept: Kept) -> ProfileInfo:
    try:
        profile = profile_from_json(kept.definition)
    except UsageError as error:  # a newer node's: shown as it is
        definition = json.loads(kept.definition)
        return ProfileInfo(
            name=kept.name,
            title=f"({error.what})",
            built_in=False,
            definition=definition if isinstance(definition, dict) else {},
            updated_at_ms=kept.updated_at_ms,
        )
    return _info(profile, built_in=False, updated_at_ms=kept.updated_at_ms)


def _info(profile: Profile, *, built_in: bool, updated_at_ms: int | None) -> ProfileInfo:
    return ProfileInfo(
        name=profile.name,
        title=profile.title,
        built_in=built_in,
        definition=profile.model_dump(mode="json"),
        updated_at_ms=updated_at_ms,
    )

"""What the HTTP API says and hears of profiles, and the part of the gateway's port that is about them."""

from typing import Any, Protocol

from pydantic import Field

from node.gateway.base_models import Answer, Question
from node.gateway.models import (
    DEFINITION_CHARS_MAX,
)


class ProfileInfo(Answer):
    """One way to convert; `definition` holds every field that docs/profiles.md explains."""

    name: str
    title: str
    built_in: bool
    definition: dict[str, Any]
    updated_at_ms: int | None = None


class ProfilesPage(Answer):
    """All profiles, the built-in ones first."""

    profiles: list[ProfileInfo]


class PutProfileRequest(Question):
    """A profile as JSON text; its name is in it."""

    definition: str = Field(min_length=2, max_length=DEFINITION_CHARS_MAX)


class RemovedProfile(Answer):
    """The profile that no job can ask for any more."""

    name: str


class ProfileService(Protocol):
    """Profiles that every node of the mesh knows; errors as of `NodeService`."""

    async def list(self) -> ProfilesPage:
        """All of them; the built-in ones also without a mesh."""
        ...

    async def show(self, name: str) -> ProfileInfo:
        """One of them.  Raises `NotFoundError`."""
        ...

    async def put(self, request: PutProfileRequest) -> ProfileInfo:
        """Adds one, or puts it in the place of the one of its name.

        Raises `UsageError` (none, or too large), `ConflictError` (the name of a built-in one).
        """
        ...

    async def remove(self, name: str) -> RemovedProfile:
        """Removes one; jobs that carry it go on.  Raises `NotFoundError`, `ConflictError` (built in)."""
        ...

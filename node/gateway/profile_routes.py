"""Routes of the HTTP API about profiles, each a call of the `ProfileService`."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Path

from node.gateway.models import NAME_CHARS_MAX
from node.gateway.profile_models import (
    ProfileInfo,
    ProfileService,
    ProfilesPage,
    PutProfileRequest,
    RemovedProfile,
)

_Name = Annotated[str, Path(min_length=1, max_length=NAME_CHARS_MAX)]


def add_profile_routes(
    app: FastAPI,
    api: str,
    profiles: Callable[[], ProfileService],
    errors: dict[int | str, dict[str, Any]],
) -> None:
    """Adds them; `errors` is how the API documents its problem documents."""

    @app.get(f"{api}/profiles", responses=errors)
    async def all_profiles() -> ProfilesPage:
        """All profiles, the built-in ones first."""
        return await profiles().list()

    @app.get(f"{api}/profiles/{{name}}", responses=errors)
    async def profile(name: _Name) -> ProfileInfo:
        """One profile with every field."""
        return await profiles().show(name)

    @app.post(f"{api}/profiles", responses=errors)
    async def put_profile(request: PutProfileRequest) -> ProfileInfo:
        """Adds a profile, or replaces the one of its name; jobs keep the one that they were made with."""
        return await profiles().put(request)

    @app.post(f"{api}/profiles/{{name}}/remove", responses=errors)
    async def remove_profile(name: _Name) -> RemovedProfile:
        """Removes a profile; jobs that carry it go on."""
        return await profiles().remove(name)

"""What a submission asks for, as the one profile that its jobs carry: pure."""

from typing import get_args

from mesh.errors import UsageError
from node.gateway.models import SubmitRequest
from node.media.profiles import (
    Family,
    Profile,
    QualityPolicy,
    built_in,
    profile_from_json,
)

_NAMES: tuple[Family, ...] = get_args(Family)
FAMILIES: dict[str, Family] = {name.lower(): name for name in _NAMES}
ANY = "any"
"""Every kind of chip, then the processor."""


def profile_of(request: SubmitRequest) -> Profile:
    """The profile with everything that the request says otherwise.

    Raises `UsageError` for a profile that nobody knows or that is none.
    """
    base = (
        profile_from_json(request.definition) if request.definition else built_in(request.profile)
    )
    if base.name != request.profile:
        raise UsageError(
            f"the profile is called {base.name!r}, not {request.profile!r}", "use one name"
        )
    publish = {
        name: value
        for name in ("trash_days", "times", "permissions", "larger")
        if (value := getattr(request, name)) is not None
    }
    if request.replace:
        # What takes a film's place is as old and as open as the film, unless it is said otherwise.
        publish = {"replace": True, "times": "source", "permissions": "source"} | publish
    if (base.publish.replace or request.replace) and request.output is not None:
        raise UsageError("a result that replaces its film has no other place", "leave out --output")
    changes: dict[str, object] = {"publish": base.publish.model_copy(update=publish)}
    if request.metadata is not None:
        changes["metadata"] = request.metadata
    if request.encoders:
        families = {"encoders": families_of(request.encoders)}
        changes["video"] = base.video.model_copy(update=families)
    if request.vmaf_min is not None:
        changes["quality"] = QualityPolicy(vmaf_min=request.vmaf_min)
    return profile_from_json(base.model_copy(update=changes).to_json())


def families_of(names: list[str]) -> tuple[Family, ...]:
    """The families by their names in any case, each once; `any` stands for all.  Raises `UsageError`."""
    found: list[Family] = []
    for name in names:
        if name.lower() == ANY:
            found += sorted(_NAMES, key="CPU".__eq__)  # the processor last
            continue
        family = FAMILIES.get(name.lower())
        if family is None:
            raise UsageError(
                f"no encoder's family is called {name[:32]!r}",
                f"use {ANY}, or some of {', '.join(FAMILIES)}",
            )
        found.append(family)
    return tuple(dict.fromkeys(found))

"""What a host says when it does not admit a node: one line each, with a stable code.

Refusals that are final (`again_ms` 0) and concern an invitation are only told to a guest that has
proven its token; everybody else learns nothing about how an invitation stands.
"""

from typing import Final

from mesh.errors import DarkStreamError
from mesh.joining import Refusal
from mesh.trust import TRIES_A_MINUTE

_BUSY_AGAIN_MS: Final = 5_000
_TRY_AGAIN_MS: Final = 60_000 // TRIES_A_MINUTE
_COMMIT_AGAIN_MS: Final = 1_000
"""A coordinator is elected within about that time."""


def refusal_of(error: DarkStreamError) -> Refusal:
    """What a guest is told when the mesh could not or would not admit it."""
    again_ms = 0 if error.retry == "never" else _COMMIT_AGAIN_MS
    return Refusal(code=error.code, what=error.what, todo=error.todo, again_ms=again_ms)


NO_MESH: Final = Refusal(code="no_mesh", what="that node belongs to no mesh yet", again_ms=1_000)
OTHER_MESH: Final = Refusal(
    code="other_mesh",
    what="the token is for another mesh",
    todo="make a token on a node of the mesh that this node is to join",
)
UNKNOWN_INVITATION: Final = Refusal(
    code="unknown_token",
    what="the mesh does not know this token (any more)",
    todo="make a new one with `mesh-cli token create`",
)
USED_UP: Final = Refusal(
    code="token_used",
    what="the token is used up",
    todo="make a new one with `mesh-cli token create`, with --uses N for several nodes",
)
EXPIRED: Final = Refusal(
    code="token_expired",
    what="the token has expired",
    todo="make a new one with `mesh-cli token create`, with --ttl for a longer time",
)
WRONG_PROOF: Final = Refusal(
    code="wrong_proof",
    what="the token's secret is not the invitation's",
    todo="copy the whole token again",
)
NOT_KNOWN_THERE: Final = Refusal(
    code="wrong_proof",
    what="the node that answers does not know the token's secret",
    todo="copy the whole token again, or make a new one with `mesh-cli token create`",
)
"""What a guest concludes itself: the token was changed on its way, or a stranger answers."""
NO_CHALLENGE: Final = Refusal(
    code="replayed", what="there is no challenge that this proof answers", again_ms=1_000
)
TOO_MANY_TRIES: Final = Refusal(
    code="too_many_tries",
    what=f"more than {TRIES_A_MINUTE} tries to join from one address in a minute",
    todo="wait a minute",
    again_ms=_TRY_AGAIN_MS,
)
BUSY: Final = Refusal(
    code="busy", what="too many nodes ask to be admitted", again_ms=_BUSY_AGAIN_MS
)
CLOSED: Final = Refusal(
    code="closed",
    what="that mesh admits nodes by token only",
    todo="ask for a token and start with --join TOKEN",
    again_ms=60_000,
)
DENIED: Final = Refusal(
    code="denied",
    what="a person denied the admission of this node",
    todo="ask whoever runs the mesh for a token",
    again_ms=60_000,
)
NO_APPROVAL: Final = Refusal(
    code="no_approval", what="no approval is pending for this node", again_ms=1_000
)
WRONG_NONCE: Final = Refusal(
    code="wrong_nonce", what="the nonce is not the one that was committed to", again_ms=1_000
)

"""Where a job may be worked on, as its person asked: terms that must all hold, pure.

A term is a label that the node has to have, or nodes of which it has to be one.  Sound and assembly of
a film in pieces are outside of this: only the node that has the film can do them.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

LABEL: Final = r"^[a-z0-9][a-z0-9._-]{0,31}$"
"""What a label may be: nothing that a term, a shell or a table would take for something else."""
LABELS_MAX: Final = 16
"""Of one node, and of one job: hellos and rows are small."""
_NODE: Final = "@"
_OR: Final = "|"


LABEL_WORDS: Final = "a label has up to 32 small letters, digits, dots, dashes and underscores, and begins with a letter or digit"


def checked_label(text: str) -> str:
    """The label.  Raises `ValueError`, in words for a person."""
    if not is_label(text):
        raise ValueError(f"{text[:40]!r} is no label: {LABEL_WORDS}")
    return text


def is_label(text: str) -> bool:
    """Whether this may be a label."""
    return re.fullmatch(LABEL, text) is not None


def place_of(labels: Iterable[str], nodes: Sequence[str]) -> tuple[str, ...]:
    """The terms for a node with all these labels that is one of these (ids; none: any node)."""
    one_of = (_OR.join(_NODE + node for node in sorted(set(nodes))),) if nodes else ()
    return (*sorted(set(labels)), *one_of)


def lacks(place: Iterable[str], node: str, labels: Collection[str]) -> Iterator[str]:
    """What keeps a node from being such a place, a sentence about it for each term."""
    for term in place:
        if not term.startswith(_NODE):
            if term not in labels:
                yield f"lacks the label {term}"
        elif _NODE + node not in term.split(_OR):
            yield "is none of the nodes that were asked for (--on)"


def may_be(place: Iterable[str], node: str) -> bool:
    """Whether a node may be such a place as far as its id tells: labels are not known to the ledger."""
    return all(_NODE + node in t.split(_OR) for t in place if t.startswith(_NODE))


def labels_in(place: Iterable[str]) -> list[str]:
    """The labels that were asked for."""
    return [term for term in place if not term.startswith(_NODE)]


def nodes_in(place: Iterable[str]) -> list[str]:
    """The ids of the nodes that were asked for; none: any."""
    terms = (term.split(_OR) for term in place if term.startswith(_NODE))
    return [node.removeprefix(_NODE) for nodes in terms for node in nodes]

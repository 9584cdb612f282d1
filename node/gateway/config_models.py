"""What the HTTP API says and hears of configurations."""

from pydantic import Field

from node.gateway.base_models import Answer, Question
from node.gateway.models import (
    PATH_CHARS_MAX,
)

CONFIG_CHARS_MAX = 256 << 10
"""A configuration written by a person is a few KiB."""


class ValidateRequest(Question):
    """The text of a `node.toml`; `file` is its name, for the faults alone."""

    text: str = Field(max_length=CONFIG_CHARS_MAX)
    file: str = Field(default="node.toml", min_length=1, max_length=PATH_CHARS_MAX)


class ConfigFaultInfo(Answer):
    """One fault of a configuration: where it stands (`line` 0: nowhere), which key, what to do."""

    file: str
    line: int
    key: str
    what: str
    todo: str


class Validated(Answer):
    """Whether a node of this version would start with a configuration, and every fault of it."""

    file: str
    ok: bool
    faults: list[ConfigFaultInfo]

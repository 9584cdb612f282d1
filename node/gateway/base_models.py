"""What everything that the API says and hears has in common."""

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base of what the API says."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Question(BaseModel):
    """Base of what the API hears: unknown fields are faults, nothing is coerced."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

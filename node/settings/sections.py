"""Sections of the configuration about work: how long its history is kept."""

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of all sections: strict, nothing unknown, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class HistoryConfig(Section):
    """How long jobs that are over are kept with their history; the coordinator's settings count."""

    keep_days: int = Field(default=365, ge=0, le=36_500)
    """After so many days a job that is over is forgotten; 0: never."""
    keep_jobs: int = Field(default=500_000, ge=0, le=100_000_000)
    """Of more jobs that are over, the oldest are forgotten; 0: any number is kept."""

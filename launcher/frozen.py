"""The base of everything that the launcher works out and writes down."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Cannot be changed once made, and has no keys but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

"""What every table of settings shares. **Pure.**"""

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """Frozen, and refuses unknown keys: a misspelt setting is an error, never silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

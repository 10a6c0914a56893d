"""Settings of features: where the server finds definitions and rows, and how a model's inputs are bound to views. **Pure.**"""

from typing import Literal, Self

from pydantic import Field, model_validator

from server.core.table import Table

_REFERENCE = r"^[A-Za-z_][A-Za-z0-9_]*@[1-9][0-9]*$"


class FeatureStoreSettings(Table):
    """`[features]` of the server. Without `definitions` it has no features, and opens no store.

    `definitions` are Python files that the operator installed; nothing in the repository is ever executed. `store` "": the
    first that there is of `REDIS_URL`, a local server, an embedded one, the process itself. `feast_store`: where Feast keeps
    the rows of its views, "" for none.
    """

    definitions: tuple[str, ...] = ()
    store: str = ""
    project: str = Field("podium", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    budget_us: int = Field(10_000, gt=0, le=10_000_000)
    budget_of_deadline: float = Field(0.3, gt=0, le=1)
    cache_bytes: int = Field(64 * 2**20, ge=0)
    cache_ttl_us: int = Field(1_000_000, ge=0)
    audit_file: str = ""
    audit_of_rows: float = Field(0.01, gt=0, le=1)
    audit_max_bytes: int = Field(256 * 2**20, gt=0)
    feast_store: str = ""
    feast_project: str = ""

    @model_validator(mode="after")
    def _both_of_feast(self) -> Self:
        if bool(self.feast_store) != bool(self.feast_project):
            raise ValueError("feast_store and feast_project are stated together")
        return self


class ViewSettings(Table):
    """One view that a model reads: `name@version`, and for each join key the input of a call that brings it.

    A join key that is not named comes by the input of its own name.
    """

    view: str = Field(pattern=_REFERENCE)
    keys: dict[str, str] = Field(default_factory=dict)


class PackedInput(Table):
    """An input of the model that several features make up, one column each, in this order."""

    name: str
    columns: tuple[str, ...] = Field(min_length=1)


class ModelFeatures(Table):
    """`[features]` of `model.toml`: how versions that were trained on features get them. Others are served as they are.

    `views`: all that some version was trained on; each version reads its own of them, two may read two versions of a view.
    A feature is the model's input of its own name, unless `inputs` packs it into another. `as_of`: the input by which a call
    may state the instant it asks for, in microseconds since 1970; "" none: it is always now. `on_timeout`: whether the default
    stands in when the store does not answer, or the request fails.
    """

    views: tuple[ViewSettings, ...] = Field(min_length=1)
    inputs: tuple[PackedInput, ...] = ()
    as_of: str = ""
    on_timeout: Literal["default", "fail"] = "default"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what, names in (
            ("views", [each.view for each in self.views]),
            ("inputs", [each.name for each in self.inputs]),
            ("columns of inputs", [column for each in self.inputs for column in each.columns]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{what} must be distinct")
        return self

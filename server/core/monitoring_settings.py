"""Settings of monitoring: what is sampled, where it goes, what it is judged by, and who is told. **Pure.**

Every field is described in docs/CONFIG.md, which a test compares with this file.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from server.core.table import Table

Name = Annotated[str, Field(min_length=1, max_length=256)]


class ParquetSettings(Table):
    """`[monitoring.parquet]` of the server: samples kept as files, for retraining and for joining labels. `dir` "": none are.

    A file is closed once it has `max_file_bytes` or is `max_file_s` old; files older than `retention_s` are removed, and the
    oldest while all of them have more than `max_total_bytes`.
    """

    dir: str = ""
    max_file_bytes: int = Field(64 * 2**20, gt=0)
    max_file_s: float = Field(3600.0, gt=0)
    retention_s: float = Field(30 * 86_400.0, gt=0)
    max_total_bytes: int = Field(8 * 2**30, gt=0)


class DeliverySettings(Table):
    """`[monitoring.retrain]` of the server: where retrain events go; every place that is stated gets each of them.

    `webhook`: a URL that is posted to, signed with the key in the file `hmac_key_file`. `stream`: the name of a Redis stream at
    `redis`. `command`: a program and its arguments, run with the event on its standard input.
    """

    webhook: str = ""
    hmac_key_file: str = ""
    redis: str = ""
    stream: str = ""
    command: tuple[str, ...] = ()
    timeout_s: float = Field(10.0, gt=0)
    retry_max_s: float = Field(300.0, gt=0)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.webhook and not self.webhook.startswith(("http://", "https://")):
            raise ValueError("webhook must be an http:// or https:// URL")
        if bool(self.webhook) != bool(self.hmac_key_file):
            raise ValueError("webhook and hmac_key_file are stated together: who gets an event must be able to trust it")
        if bool(self.redis) != bool(self.stream):
            raise ValueError("redis and stream are stated together")
        return self


class MonitoringSettings(Table):
    """`[monitoring]` of the server.

    `sink`: "process" counts and judges in this process, "redis" hands samples to the stream `stream` at `redis`, which
    `podium monitor` reads for all replicas, "none" samples nothing. `dir`: where state outlives the process, "" nowhere.
    `buffer_rows`, `buffer_bytes`: what may wait for each sink; more is dropped and counted. `seed` chooses who is sampled, and
    is the same on all replicas. `stream_rows`: about how many rows the stream keeps.
    """

    sink: Literal["process", "redis", "none"] = "process"
    dir: str = ""
    seed: int = Field(0x6D6F6E69746F72, ge=0, lt=2**64)
    buffer_rows: int = Field(262_144, gt=0)
    buffer_bytes: int = Field(64 * 2**20, gt=0)
    redis: str = ""
    stream: str = Field("podium:samples", min_length=1)
    stream_rows: int = Field(4_000_000, gt=0)
    parquet: ParquetSettings = ParquetSettings()
    retrain: DeliverySettings = DeliverySettings()

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.sink == "redis" and not self.redis:
            raise ValueError('sink "redis" needs redis, the URL of the server that all replicas share')
        return self


class QualitySettings(Table):
    """`[monitoring.quality]` of a model: what its answers are compared with once outcomes are known.

    `output` and `column`: where the score is; "" the first output. `kind`: what a score is: the probability of the positive
    class ("binary"), one number per class ("multiclass", the whole output), or an estimate ("regression"). `threshold`: from
    where on a binary score says yes. An outcome counts `horizon_s` after its prediction was served, whenever it was reported
    before; one that comes later is counted as late. `objective`: the metric that must be reached, with `at_least` or `at_most`.
    `risk_tolerance`: by how much the mean loss may be worse than on the baseline's rows before that is harm.
    """

    kind: Literal["binary", "multiclass", "regression"] = "binary"
    output: str = ""
    column: int = Field(0, ge=0)
    threshold: float = 0.5
    horizon_s: float = Field(0.0, ge=0)
    pending_rows: int = Field(1_000_000, gt=0)
    risk_tolerance: float = Field(0.02, ge=0)
    objective: Literal["", "auc", "log_loss", "brier", "accuracy", "calibration_error", "mean_absolute_error"] = ""
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _objective_has_a_bound(self) -> Self:
        if bool(self.objective) != ((self.at_least is None) != (self.at_most is None)):
            raise ValueError("objective is stated with exactly one of at_least and at_most")
        return self


class RetrainSettings(Table):
    """`[monitoring.retrain]` of a model: for which reasons a retraining is asked for. `every_s`, `new_rows` 0: never for those.

    `cool_down_s`: after an event the same model asks for nothing, and never for less than the outcomes' `horizon_s`.
    """

    on: tuple[Literal["drift", "quality", "schedule", "new_data"], ...] = ("drift", "quality")
    every_s: float = Field(0.0, ge=0)
    new_rows: int = Field(0, ge=0)
    cool_down_s: float = Field(86_400.0, ge=0)


class ModelMonitoring(Table):
    """`[monitoring]` of `model.toml`. Everything has a default.

    `rate`: the probability with which a request is sampled; 0: as much as gives about `target_rows` rows a window, at most
    `max_rate`. Each arm gets at least `floor_rows` a window while it has them, and no more than `max_rows_per_s` are taken in
    all. Inputs and outputs of more than `max_elements` elements a row are not sampled. `categorical`: inputs of integers that
    are codes. `ignore`: not sampled at all; `redact`: left out of what is written to files and streams, and so unknown to
    `podium monitor`.
    `time_input`: an INT64 input with microseconds since 1970 that says when a row happened, "" when it was served. `tolerance`:
    the shift that is harmless, in standard deviations. `alarm_every_windows`: without drift, a version gives at most one alarm
    in so many windows on average.
    """

    enabled: bool = True
    rate: float = Field(0.0, ge=0, le=1)
    target_rows: int = Field(10_000, gt=0)
    max_rate: float = Field(0.05, gt=0, le=1)
    floor_rows: int = Field(500, ge=0)
    max_rows_per_s: int = Field(100_000, gt=0)
    max_elements: int = Field(1024, gt=0, le=65_536)
    categorical: tuple[Name, ...] = ()
    ignore: tuple[Name, ...] = ()
    redact: tuple[Name, ...] = ()
    time_input: str = ""
    window_s: float = Field(3600.0, ge=1, le=604_800)
    grace_s: float = Field(60.0, ge=0)
    min_rows: int = Field(50, ge=10)
    learning_rows: int = Field(20_000, ge=1000)
    tolerance: float = Field(0.1, gt=0, le=1)
    alarm_every_windows: int = Field(672, ge=10)
    quality: QualitySettings | None = None
    retrain: RetrainSettings = RetrainSettings()


class Constraint(Table):
    """What every row of one input must be. `column`: of an input with several elements a row, the one that is meant; None all.

    `at_least`, `at_most` are of numbers, inclusive; `one_of` of texts or integers; `complete`: no NaN, and no empty text;
    `finite`: no infinity either.
    """

    name: Name
    column: int | None = Field(None, ge=0)
    at_least: float | None = None
    at_most: float | None = None
    one_of: tuple[str | int, ...] = ()
    complete: bool = False
    finite: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.at_least is None and self.at_most is None and not (self.one_of or self.complete or self.finite):
            raise ValueError(f"the constraint on '{self.name}' constrains nothing")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"the constraint on '{self.name}' allows nothing: at_least is above at_most")
        return self


class ValidationSettings(Table):
    """`[validation]` of `model.toml`: constraints on what callers bring. `action`: a request that breaks one is refused with
    INVALID_ARGUMENT ("reject"), or answered and counted ("count").
    """

    action: Literal["reject", "count"] = "reject"
    inputs: tuple[Constraint, ...] = ()

"""What a call asks for, before it is checked against any model. **Pure.**"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.core.tensors import Array

ParameterValue = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as far as the call says so. `consumer` "" is one who does not declare itself; `traceparent` is the W3C
    header of that name, "" where there is none, `tracestate` the one that goes with it.
    """

    consumer: str = ""
    traceparent: str = ""
    tracestate: str = ""


ANONYMOUS = Caller()


@dataclass(frozen=True, slots=True)
class WireTensor:
    """One input as it arrived.

    Ownership: `data` is bytes in wire form (raw contents) or a flat array (typed contents); read-only, kept until
    the batch has been gathered.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview | Array


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One ModelInfer call. `version` is the caller's string, "" for "whichever serves". Times are monotonic ns.

    `outputs` empty means all outputs. `priority` 0 means the model's default; `timeout_us` 0 means none.
    `deadline_ns` is the transport's deadline or None. `streamed`: it came by a stream, and may have any number of answers.
    """

    model: str
    version: str
    id: str
    inputs: tuple[WireTensor, ...]
    outputs: tuple[str, ...]
    arrival_ns: int
    deadline_ns: int | None = None
    timeout_us: int = 0
    priority: int = 0
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    caller: Caller = ANONYMOUS
    streamed: bool = False

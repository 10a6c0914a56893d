"""What a call asks for, before it is checked against any model. **Pure.**"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

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

INVALID_CONSUMER = "invalid"
"""Counted in place of a declared identity that is none."""
OTHER_CONSUMERS = "other"
"""Counted in place of identities beyond those that are told apart."""
MAX_CONSUMER_LETTERS = 128


def consumer_named(declared: str | bytes) -> str:
    """The consumer that a call declares itself to be; surrounding blanks do not count, and nothing declares nobody.

    >>> consumer_named(" checkout "), consumer_named(""), consumer_named("x" * 129), consumer_named("tab\\t")
    ('checkout', '', 'invalid', 'invalid')
    """
    if isinstance(declared, bytes):
        return INVALID_CONSUMER
    name = declared.strip(" ")
    if len(name) > MAX_CONSUMER_LETTERS or not name.isascii() or not name.isprintable():
        return INVALID_CONSUMER
    return name


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


class Region(Protocol):
    """Memory that a caller shares with this server. It stays as long as anybody holds this. Units: bytes from its beginning."""

    @property
    def name(self) -> str:
        """What callers call it."""
        ...

    @property
    def byte_size(self) -> int:
        """How much of it may be used."""
        ...

    def read(self, offset: int, byte_size: int) -> bytes:
        """A copy of a part. Raises: SharedMemoryFailed where it is not there any more."""
        ...

    def writable(self, offset: int, byte_size: int) -> tuple[tuple[int, int], int, int]:
        """Where a part lies: its file, and the first byte and the one after the last in it.

        Raises: SharedMemoryFailed where it is not there any more.
        """
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Fill a part. Raises: SharedMemoryFailed."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a region, for one tensor. Ownership: whoever holds it holds the region."""

    region: Region
    offset: int
    byte_size: int


Target = Place | int
"""What a caller wants done with an output: written to a place, or replaced by so many of its classes."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One ModelInfer call. `version` is the caller's string, "" for "whichever serves". Times are monotonic ns.

    `outputs` empty means all outputs. `priority` 0 means the model's default; `timeout_us` 0 means none.
    `deadline_ns` is the transport's deadline or None. `streamed`: it came by a stream, and may have any number of answers.
    `targets` has the outputs that are not simply sent, by name.
    `timing`: its answer is to say how long what took. `features`: it is to say which of its features were not simply there.
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
    targets: Mapping[str, Target] = field(default_factory=dict)
    timing: bool = False
    features: bool = False

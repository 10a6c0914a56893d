"""What a load has measured of one version on one kind of device: times per batch size, and memory. **Pure.**

Floor 1: the registry keeps these documents beside the version, the ledger takes its estimate from them, the fake backend its
times. docs/MEASURED.md describes them for whoever reads them elsewhere.
"""

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.core.clock import NS_PER_US
from server.core.errors import RegistryError
from server.core.settings import ModelSettings

_KEPT = frozenset({"backend", "max_batch", "inputs", "outputs", "batching", "instances", "decoupled"})
"""Settings of every backend that decide what a version holds and how long it takes; the backend's own table comes on top."""
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9.]+")
_LONGEST_NAME = 100

Rows = Annotated[int, Field(gt=0)]
Positive = Annotated[int, Field(gt=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Measured(BaseModel):
    """One version on one kind of device, as its last load found it.

    `files` and `settings` are digests: it is about a version with these very files, loaded in this very way. `instances`
    copies of it took `memory_bytes` together (None where the device does not tell). `costs_ns` by rows: how long a batch
    takes, the fastest of its warm-up runs; empty where no sample ran. `libraries`: what executed it, by name and version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model: str
    version: Positive
    measured_at: AwareDatetime
    device_kind: str = Field(min_length=1)
    backend: str = Field(min_length=1)
    platform: str
    libraries: dict[str, str] = Field(default_factory=dict)
    files: Digest
    settings: Digest
    instances: Positive = 1
    memory_bytes: Positive | None = None
    costs_ns: dict[Rows, Positive] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _something(self) -> "Measured":
        if self.memory_bytes is None and not self.costs_ns:
            raise ValueError("neither memory_bytes nor costs_ns: nothing was measured")
        return self


def parse_measured(data: bytes) -> Measured:
    """Read a document. Raises: RegistryError naming the first key that is wrong."""
    try:
        # JSON has no keys but texts, so rows are texts there: not strict
        return Measured.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise RegistryError(f"{where}: {fault['msg']}" if where else fault["msg"]) from None


def measured_bytes(measured: Measured) -> bytes:
    """The document as it is written: `parse_measured` of it gives the same one back."""
    return (measured.model_dump_json(indent=2) + "\n").encode()


def document_name(device_kind: str, backend: str) -> str:
    """What the document of a kind of device and a backend is called.

    >>> document_name("NVIDIA H200", "onnx")
    'NVIDIA-H200.onnx.json'
    """
    return f"{_NOT_IN_A_NAME.sub('-', device_kind).strip('-.')[:_LONGEST_NAME] or 'device'}.{backend}.json"


def settings_digest(backend: str, settings: ModelSettings) -> str:
    """SHA-256 of the settings that decide what a version holds and how long it takes, executed by `backend`."""
    decisive = settings.model_dump(mode="json", include={*_KEPT, backend})
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def table_us(measured: Measured) -> dict[int, float]:
    """Its times as `[fake] table_us` takes them. Units: microseconds by rows, ascending."""
    return {rows: cost_ns / NS_PER_US for rows, cost_ns in sorted(measured.costs_ns.items())}


def fake_toml(measured: Measured) -> str:
    """Its times as the `[fake]` table of a `model.toml`."""
    entries = ", ".join(f"{rows} = {cost_us!r}" for rows, cost_us in table_us(measured).items())
    origin = f"{measured.model}:{measured.version} on {measured.device_kind}, {measured.measured_at:%Y-%m-%d}"
    return f"# {_printable(origin)}\n[fake]\ntable_us = {{ {entries} }}\n"


def _printable(text: str) -> str:
    """A comment ends with its line: nothing that was read may begin another one."""
    return "".join(character if character.isprintable() else "?" for character in text)

"""What every backend offers to the floors above. Pure: names, no behaviour.

A backend holds one version on one device. It is used by one engine thread at a time and by nobody after `close`.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.tensors import Array
from server.core.versions import VersionKey


class Backend(Protocol):
    """A loaded version.

    `signature` is what the file (and the settings) say; `platform` and `device` are words for ModelMetadata, ModelConfig
    and metrics ("onnxruntime_onnx", "fake"; "cpu", "cuda:0").
    """

    signature: Signature
    platform: str
    device: str

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Execute one batch.

        Shapes: every input is `[rows, *spec.shape]` (batching models) with the same rows; so is every output.
        Ownership: inputs are only read, and not kept; outputs belong to the caller.
        Raises: BackendFailed when this batch could not be executed (InputsUnfit where what its callers brought is at fault),
        BackendDead when no further one ever can.
        """
        ...

    def memory_bytes(self) -> int:
        """Memory this version holds, as far as the backend can tell; 0 where it cannot."""
        ...

    def close(self) -> None:
        """Give everything back. Called once, after the last run has returned."""
        ...


class DecoupledBackend(Backend, Protocol):
    """A loaded version whose requests may have any number of answers (`decoupled` in its settings)."""

    def stream(self, inputs: Mapping[str, Array]) -> Generator[dict[str, Array], None, None]:
        """The answers to one request, as they come. Closed early when the caller leaves.

        Shapes and Raises: as `run`, but each answer has as many rows as it likes.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoadTask:
    """What a backend is opened from. `folder` is the version's folder; it may vanish after loading."""

    key: VersionKey
    folder: Path
    settings: ModelSettings


class BackendFactory(Protocol):
    """One per backend file: `server.backends.<file>.open_backend`."""

    def __call__(self, task: LoadTask) -> Backend:
        """Load a version. Raises: LoadFailed with a text that names the file and the reason."""
        ...

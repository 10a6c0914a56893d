"""What every backend offers to the floors above. Pure: names, no behaviour.

A backend holds one version on one device. It is used by one engine thread at a time and by nobody after `close`.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.tensors import Array, Shapes
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


class PreparedBackend(Backend, Protocol):
    """A loaded version that is got ready for the batches it will be given: compiled for them, captured as graphs."""

    def prepare(self, buckets: Sequence[int]) -> None:
        """Get ready for batches of so many rows. Called once, before the warm-up. Raises: BackendDead."""
        ...

    def notes(self) -> tuple[str, ...]:
        """What came of it, for the version's operator: what is executed otherwise than asked for, and why."""
        ...


class DecoupledBackend(Backend, Protocol):
    """A loaded version whose requests may have any number of answers (`decoupled` in its settings)."""

    def stream(self, inputs: Mapping[str, Array]) -> Generator[dict[str, Array], None, None]:
        """The answers to one request, as they come. Closed early when the caller leaves.

        Shapes and Raises: as `run`, but each answer has as many rows as it likes.
        """
        ...


class Pending(Protocol):
    """A batch that is on its way through a device.

    `wait`, then `outputs`, once each and by the thread that began it. Dropping it instead is allowed.
    """

    def wait(self) -> None:
        """Block until the device is free for what follows. Raises: as `Backend.run`."""
        ...

    def outputs(self) -> dict[str, Array]:
        """Block until the answers are in host memory. Ownership: the caller's. Raises: as `Backend.run`."""
        ...


class PipelinedBackend(Backend, Protocol):
    """A loaded version on a device that works by itself: its next batch is handed over while one executes.

    `run` is `begin`, `wait` and `outputs` at once. `begin` may be called from several threads, one batch of each being open; as
    many as its attribute `slots` says, where it has one, may be open before `begin` waits for one of them to end.
    """

    def arrays(self, shapes: Shapes) -> dict[str, Array]:
        """Unfilled arrays for the inputs of a batch, in memory that the device reads fastest. What comes back may be given to
        `begin` as it is, once; so may any other arrays. From any thread."""
        ...

    def begin(self, inputs: Mapping[str, Array]) -> Pending:
        """Hand a batch to the device, behind those that it was given before; returns before it has been executed.

        Shapes and Raises: as `run`. Ownership: `inputs` must stay unchanged until the answers are there.
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

"""How much memory a version will take, before it is opened: the best that is known, and where that comes from. **Pure.**

Floor 4, for `ledger`. An estimate is corrected by what the load then measures; it need not be right, only said.
"""

from dataclasses import dataclass

from server.core.measured import Measured
from server.core.settings import DEFAULT_MAX_BATCH, ModelSettings

FILES_PERCENT = 125
"""A backend holds its weights about as the file does, and a little beside them: graphs, kernels, what is rounded up. An
assumption until a load has measured the version."""
BATCH_BYTES = 64 * 2**20
"""For one batch that executes: inputs, outputs and what lies between them. An assumption too, that knows no model."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Units: bytes on the device. `source` says in words where the number comes from."""

    nbytes: int
    source: str


def estimate(backend: str, settings: ModelSettings, files_bytes: int, measured: Measured | None) -> Estimate:
    """What a version needs, `files_bytes` being the size of all its files.

    `measured` is about the same files loaded in the same way on the same kind of device, or None. The fake backend's files
    weigh nothing: there the settings say what it will hold.
    """
    if measured is not None and measured.memory_bytes is not None:
        when = f"{measured.measured_at:%Y-%m-%d}"
        return Estimate(measured.memory_bytes, f"measured on {measured.device_kind} on {when}")
    instances = settings.instances
    if backend == "fake":
        rows = max(1, DEFAULT_MAX_BATCH if settings.max_batch is None else settings.max_batch)
        each = settings.fake.weights_bytes + rows * settings.fake.row_bytes
        return Estimate(instances * each, "as [fake] of its settings says, with its largest batch")
    each = -(-files_bytes * FILES_PERCENT // 100) + BATCH_BYTES
    source = f"estimated: {files_bytes} bytes of files, times {FILES_PERCENT / 100}, and {BATCH_BYTES} bytes for a batch"
    return Estimate(instances * each, source if instances == 1 else f"{source}, times {instances} instances")

"""What backends that learn from a file whether they batch do alike: find it out, and hold the file to it. Floor 2."""

import logging
from collections.abc import Mapping

from server.backends.base import Backend, LoadTask
from server.backends.probe import try_batching
from server.core.errors import BackendFailed, LoadFailed
from server.core.tensors import Array

_LOG = logging.getLogger("podium.backends")


def decide_batching(backend: Backend, task: LoadTask, file: str) -> None:
    """Take batching away from a backend whose rows mix, and say so; settings that state `max_batch` are taken at their word.

    Raises: LoadFailed, and then the backend is closed.
    """
    if task.settings.max_batch is not None or not backend.signature.max_batch:
        return
    try:
        mixing = try_batching(backend, halves=task.settings.torch.precision != "as_saved")
    except BackendFailed as error:
        backend.close()
        raise LoadFailed(f"{file}: {error}") from error
    if mixing is not None:
        _LOG.warning("%s is served without batching: %s; max_batch in model.toml overrides this", task.key, mixing)


def check_rows(model: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Hold outputs to the rows of the inputs. Raises: BackendFailed."""
    rows = next(iter(inputs.values())).shape[0]
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            raise BackendFailed(f"output '{name}' of model '{model}' has shape {list(array.shape)} for {rows} rows")

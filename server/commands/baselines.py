"""The baseline of a version that is being registered: validation rows through the version's own backend.

Floor 7: rows, backend and profile are put together here. What the rows get as answers is what a server would answer, because it
opens the same files in the same way; how long one row takes is measured on the way.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from feature_client.contract import read_contract
from server.backends.base import Backend
from server.commands.baseline_rows import Rows, read_rows
from server.commands.opened import opened
from server.core.clock import NS_PER_US
from server.core.errors import InvalidRequest
from server.core.settings import ModelSettings
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.lifecycle.loader import run_golden
from server.monitoring.baseline import Baseline
from server.monitoring.baseline_document import BASELINE_FILE, to_document
from server.monitoring.validation_rows import baseline_of
from server.registry.manifest import path_fault
from server.registry.names import check_model_name
from server.registry.source import SETTINGS_FILE, FoundVersion, parse_settings

_TIMED_ROWS = 200
"""Executions of one row that are measured: two of them are beyond the 99 % quantile."""


def add_baseline(parser: ArgumentParser) -> None:
    """The flags of `podium register` that make a baseline."""
    parser.add_argument(
        "--baseline-rows", type=Path, metavar="FILE", help="validation rows (.npz or .parquet) that the version is monitored by"
    )
    parser.add_argument("--baseline-outcomes", metavar="NAME", help="their column with what turned out to be true")
    parser.add_argument(
        "--baseline-time", metavar="NAME", help="their column with when they happened, in microseconds since 1970"
    )


@contextmanager
def baseline_of_arguments(arguments: Namespace, files: Mapping[str, Path]) -> Iterator[Path | None]:
    """A file with the baseline that the arguments ask for, gone at the end; None where they ask for none.

    `files`: the version's, by their path in it. Raises: InvalidRequest for rows that do not fit; LoadFailed for files that
    cannot be opened; BackendFailed for rows that cannot be executed; OSError from the disk.
    """
    if arguments.baseline_rows is None:
        if arguments.baseline_outcomes is not None or arguments.baseline_time is not None:
            raise InvalidRequest("--baseline-outcomes and --baseline-time name columns of --baseline-rows, which is not given")
        yield None
        return
    if BASELINE_FILE in files:
        raise InvalidRequest(f"{BASELINE_FILE} is both a file and made from --baseline-rows")
    check_model_name(arguments.name)
    settings = _settings(arguments)
    with TemporaryDirectory(prefix="podium-baseline-") as folder:
        staged = Path(folder).resolve() / str(arguments.version or 1)
        _stage(files, staged)
        key = VersionKey(arguments.name, arguments.version or 1)
        made = _measured(arguments, FoundVersion(key, staged, "", None, True, None), settings)
        path = Path(folder) / BASELINE_FILE
        path.write_bytes(to_document(made))
        yield path


def _settings(arguments: Namespace) -> ModelSettings:
    """Those that the version will be served with: given with it, else the model's."""
    path: Path = arguments.settings or arguments.repository / arguments.name / SETTINGS_FILE
    if arguments.settings is None and not path.is_file():
        return ModelSettings()
    return parse_settings(path.read_bytes())


def _stage(files: Mapping[str, Path], folder: Path) -> None:
    """The version's folder as it will be."""
    for path, source in files.items():
        fault = path_fault(path)
        if fault:
            raise InvalidRequest(f"file {path!r} {fault}")
        if not source.is_file():
            raise InvalidRequest(f"{source} is not a file")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(source.resolve())


def _measured(arguments: Namespace, found: FoundVersion, settings: ModelSettings) -> Baseline:
    if settings.decoupled:
        raise InvalidRequest("a decoupled version has no baseline: a row may have any number of answers")
    contract = read_contract(found.folder)
    packed = {} if settings.features is None else {each.name: each.columns for each in settings.features.inputs}
    outcomes, instants = arguments.baseline_outcomes, arguments.baseline_time
    with opened(found, settings) as loaded:
        signature = loaded.backend.signature
        further = [name for name in (outcomes, instants) if name is not None]
        rows = read_rows(arguments.baseline_rows, signature.inputs, further, packed)
        answers = run_golden(loaded.backend, rows.inputs)
        latency_us = _latency_us(loaded.backend, rows.inputs)
    free = {spec.name for spec in signature.inputs if -1 in spec.shape}
    free |= {f"output:{spec.name}" for spec in signature.outputs if -1 in spec.shape}
    try:
        return baseline_of(
            found.key,
            rows.inputs,
            {spec.name: answers[spec.name] for spec in signature.outputs},
            settings,
            time_us=_time_us(rows, instants, settings.monitoring.time_input),
            labels=None if outcomes is None else rows.further[outcomes].astype(np.float64),
            features=() if contract is None else contract.feature_names,
            latency_us=latency_us,
            free=free,
        )
    except ValueError as error:
        raise InvalidRequest(f"{arguments.baseline_rows}: {error}") from None


def _time_us(rows: Rows, column: str | None, time_input: str) -> "np.ndarray[tuple[int], np.dtype[np.int64]] | None":
    """When rows happened: by the column that is named, else by the input that says so in requests."""
    array = rows.further[column] if column is not None else rows.inputs.get(time_input)
    if array is None:
        return None
    if array.dtype.kind not in "iu":
        raise InvalidRequest(f"'{column}' has no instants: {array.dtype} where microseconds since 1970 are whole numbers")
    return array.reshape(len(array)).astype(np.int64)


def _latency_us(backend: Backend, inputs: Mapping[str, Array]) -> tuple[float, float, float]:
    """The median, 95 % and 99 % quantile of an execution of one row."""
    count = len(next(iter(inputs.values())))
    batches = backend.signature.max_batch > 0
    took = []
    for place in range(_TIMED_ROWS):
        row = place % count
        one = {name: array[row : row + 1] if batches else array[row, ...] for name, array in inputs.items()}
        begun = time.perf_counter_ns()
        backend.run(one)
        took.append((time.perf_counter_ns() - begun) / NS_PER_US)
    median, most, nearly_all = np.quantile(took, (0.5, 0.95, 0.99)).tolist()
    return median, most, nearly_all

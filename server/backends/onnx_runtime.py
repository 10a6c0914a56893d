"""What is asked of onnxruntime itself. Floor 2: the one file that imports it.

Which way in and out (onnxruntime 1.31 on CPU, an MLP 16-64-64-1, one thread, us per call with 1/16/64 rows; 2026-11-21):
`run` 5.4/6.9/10.6; an IO binding kept and cleared 5.4/6.8/10.5; a fresh binding 7.7/9.3/13.6; OrtValues 34/36/40. So the CPU
uses `run`, and a binding serves for BF16 outputs, which `run` cannot convert, and for the slots of a device.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from server.backends.onnx_errors import reason
from server.backends.onnx_options import run_entries
from server.backends.onnx_values import BFLOAT16
from server.core.errors import LoadFailed
from server.core.settings import OnnxSettings
from server.core.tensors import Array

FILE = "model.onnx"

_OPTIMIZATION = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_SILENT = 4
"""Log severity "fatal": whatever fails is raised, and one caller's bad index must not write to the server's log."""


def available_providers() -> Sequence[str]:
    """The execution providers of this build; their libraries may still be missing."""
    providers: Sequence[str] = ort.get_available_providers()
    return providers


def open_session(folder: Path, settings: OnnxSettings, wanted: Sequence[tuple[str, dict[str, str]]]) -> Any:
    """A session of the file in a version's folder, on exactly the providers that are wanted. Raises: LoadFailed."""
    missing = ""
    for attempt in range(2):
        try:
            session = ort.InferenceSession(
                str(folder / FILE), _session_options(settings), providers=list(wanted), enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise LoadFailed(f"{FILE}: {reason(str(error), folder)}") from error
        session.disable_fallback()
        running = session.get_providers()
        # onnxruntime leaves a provider out, with no more than a log line, when its libraries do not load
        missing = next((provider for provider, _ in wanted if provider not in running), "")
        if not missing:
            return session
        if not attempt:
            # CUDA's libraries may be packages of this environment, where the linker does not look by itself
            ort.preload_dlls()
    raise LoadFailed(f"{FILE}: {missing} could not be started on this machine; started: {', '.join(running)}")


def run_options(settings: OnnxSettings, graph_id: int, *, graphs: bool) -> Any:
    """What one execution on a device is told. `graphs`: its session may capture; `graph_id`: which one, or `NO_GRAPH`."""
    options = ort.RunOptions()
    for key, value in run_entries(settings, graph_id, graphs=graphs).items():
        options.add_run_config_entry(key, value)
    return options


def bfloat16_value(pattern: Array) -> Any:
    """Bit patterns as onnxruntime's own type. Ownership: the value refers to the array's memory."""
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.asarray(pattern, order="C"), BFLOAT16)


def _session_options(settings: OnnxSettings) -> Any:
    options = ort.SessionOptions()
    # what this process may use, not what the machine has: ONNX Runtime's own default ignores a container's CPU set
    options.intra_op_num_threads = settings.intra_op_threads or len(os.sched_getaffinity(0))
    # threads that spin between batches take the cores that the door and the engine need
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.inter_op_num_threads = settings.inter_op_threads
    options.graph_optimization_level = _OPTIMIZATION[settings.graph_optimization]
    options.log_severity_level = _SILENT
    return options

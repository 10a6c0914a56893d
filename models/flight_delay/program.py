"""The trained network as a torch program that takes what a caller has, strings included.

torch exports the network from category codes on. The vocabularies travel in the file's own record `extra/podium.json`,
which the server applies, together with the names of inputs and outputs: one request fits `model.onnx` and `program.pt2`.
The archive is written again record by record without what depends on the exporting machine or process (stack traces,
identities of objects): equal networks give equal bytes, and `torch.export.load` still reads them.
"""

import io
import json
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from models.flight_delay.data import Flights
from models.flight_delay.export import OUTPUTS, TORCH_DTYPES
from models.flight_delay.metrics import Floats
from models.flight_delay.model import UNKNOWN, DelayModel, Fitted, encode

_NAMES = "podium.json"
_ROOT = "flight_delay"
_GRAPH = "models/model.json"
_IDENTITY = ".data/serialization_id"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


def to_program(model: DelayModel, fitted: Fitted) -> bytes:
    """The program: inputs as those of the variant, outputs as in `export.OUTPUTS`, the first dimension of each free."""
    model.eval()
    specs = fitted.inputs.specs
    examples = tuple(torch.ones((2, 1), dtype=TORCH_DTYPES[spec.datatype]) for spec in specs)
    rows = torch.export.Dim("rows")
    stored = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own internals; its errors still get through
        exported = torch.export.export(model, examples, dynamic_shapes={"inputs": tuple({0: rows} for _ in specs)})
        # without operators that write in place, which a served program may not use
        program = exported.run_decompositions({})
        torch.export.save(program, stored, extra_files={_NAMES: json.dumps(_names(fitted), sort_keys=True)})
    return _rewritten(stored.getvalue())


def predict(content: bytes, flights: Flights, fitted: Fitted) -> Floats:
    """Probabilities by the program itself, on codes. Shapes: `[rows]`."""
    codes, inputs = torch.tensor(encode(flights, fitted)), fitted.inputs
    numbers = [torch.tensor(flights.inputs[name]).unsqueeze(1) for name in inputs.values]
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO(content)).module()
        answer = program(*(codes[:, index : index + 1] for index in range(len(inputs.categories))), *numbers)
    probability: Floats = answer[:, 0].numpy().astype(np.float64)
    return probability


def _names(fitted: Fitted) -> dict[str, Any]:
    return {
        "inputs": [spec.name for spec in fitted.inputs.specs],
        "outputs": [spec.name for spec in OUTPUTS],
        "vocabularies": {
            name: {"codes": _codes(fitted.vocabularies[name]), "unknown": UNKNOWN} for name in fitted.inputs.categories
        },
    }


def _codes(vocabulary: Mapping[bytes, int]) -> dict[str, int]:
    return {value.decode(): code for value, code in vocabulary.items()}


def _rewritten(content: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            _, _, name = info.filename.partition("/")
            record = old.read(info)
            if name == _IDENTITY:
                continue  # a digest of records that have changed; no reader asks for it
            if name == _GRAPH:
                record = _without_traces(record)
            new.writestr(zipfile.ZipInfo(f"{_ROOT}/{name}", _LONG_AGO), record)
    return written.getvalue()


def _without_traces(record: bytes) -> bytes:
    parsed = json.loads(record)
    for node in parsed["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    return json.dumps(parsed, sort_keys=True, separators=(",", ":")).encode()

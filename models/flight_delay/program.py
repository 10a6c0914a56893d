"""The trained network as a torch program that takes what a caller has, strings included.

torch exports the network from category codes on. The vocabularies travel in the file's own record `extra/podium.json`,
which the server applies, together with the names of inputs and outputs: one request fits `model.onnx` and `program.pt2`.
"""

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from models.exporting import program_bytes
from models.flight_delay.data import Flights
from models.flight_delay.export import OUTPUTS, TORCH_DTYPES
from models.flight_delay.metrics import Floats
from models.flight_delay.model import UNKNOWN, DelayModel, Fitted, encode


def to_program(model: DelayModel, fitted: Fitted) -> bytes:
    """The program: inputs as those of the variant, outputs as in `export.OUTPUTS`, the first dimension of each free."""
    model.eval()
    specs = fitted.inputs.specs
    examples = tuple(torch.ones((2, 1), dtype=TORCH_DTYPES[spec.datatype]) for spec in specs)
    rows = torch.export.Dim("rows")
    return program_bytes(model, examples, {"inputs": tuple({0: rows} for _ in specs)}, _names(fitted), "flight_delay")


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

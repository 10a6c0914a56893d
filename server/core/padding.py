"""Free dimensions of inputs that are padded up to a few sizes: what a version may state, and what is written there. **Pure.**

Floor 1: settings become a part of the signature here, whatever backend has read it. Rows are padded by their bucket, which is
not this file's business.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from server.core.errors import LoadFailed
from server.core.settings import TensorSettings
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, TensorSpec


def with_pad_sizes(signature: Signature, stated: Sequence[TensorSettings]) -> Signature:
    """The signature with the sizes that its inputs are padded to; the same one where settings state none.

    Raises: LoadFailed for an input that cannot be padded, and where an answer would have to be cut.
    """
    sizes = {tensor.name: tensor for tensor in stated if tensor.pad_to}
    if not sizes:
        return signature
    for name in sorted(sizes.keys() - signature.input_names.keys()):
        raise LoadFailed(f"pad_to is stated for '{name}', which is no input of the model")
    for output in signature.outputs:
        if -1 in output.shape:
            raise LoadFailed(
                f"output '{output.name}' has the shape {list(output.shape)}: with pad_to every dimension of an output must be"
                " fixed, because what padding adds to an answer is not cut off again"
            )
    return replace(signature, inputs=tuple(_padded(spec, sizes.get(spec.name)) for spec in signature.inputs))


def _padded(spec: TensorSpec, stated: TensorSettings | None) -> TensorSpec:
    if stated is None:
        return spec
    if -1 not in spec.shape:
        raise LoadFailed(f"input '{spec.name}' has the shape {list(spec.shape)}: pad_to needs a free dimension (-1)")
    if spec.datatype == "BYTES":
        raise LoadFailed(f"input '{spec.name}' is BYTES: pad_to is for numbers")
    made = replace(spec, pad_to=stated.pad_to, pad_value=stated.pad_value)
    try:
        fits = _says(pad_element(made), spec.datatype, stated.pad_value)
    except OverflowError:
        fits = False
    if not fits:
        raise LoadFailed(f"pad_value {stated.pad_value} of input '{spec.name}' is no {spec.datatype}")
    return made


def pad_element(spec: TensorSpec) -> np.generic:
    """`pad_value` as an element of the input. Raises: OverflowError for a number that an integer type cannot hold.

    >>> hex(pad_element(TensorSpec("x", "BF16", (-1,), pad_to=(4,), pad_value=1.0)))
    '0x3f80'
    """
    scalar: Any = np.float32 if spec.datatype == "BF16" else NUMPY_DTYPES[spec.datatype].type
    with np.errstate(over="ignore"):
        element: np.generic = scalar(spec.pad_value)
    if spec.datatype != "BF16":
        return element
    bits = int(element.view(np.uint32))
    return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)  # the nearest one, ties to even


def _says(element: np.generic, datatype: str, value: float) -> bool:
    """Whether an element is the number that was stated: rounded, where it is a float, but neither cut nor infinite."""
    if datatype == "BF16":
        element = (np.uint32(element) << np.uint32(16)).view(np.float32)
    if datatype == "BF16" or datatype.startswith("FP"):
        return bool(np.isfinite(element))
    return bool(element == value)

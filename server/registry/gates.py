"""Does a freshly loaded version still answer its golden examples? **Pure.**

Floor 2: the decision only. Who loads, runs and refuses a version is the lifecycle's business.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from server.core.tensors import Array, TensorSpec


def compare_golden(
    expected: Mapping[str, Array],
    got: Mapping[str, Array],
    rtol: float,
    atol: float,
    specs: Sequence[TensorSpec] = (),
) -> str | None:
    """None if every expected output is there and close enough, else a text naming the first one that is not.

    Floats (and outputs that `specs` calls BF16, which arrive as bit patterns) pass where
    `|got - expected| <= atol + rtol * |expected|`; NaN equals NaN and an infinity only itself. Integers, booleans and
    BYTES must be equal: a tolerance that lets class 5001 pass for 5000 would be no gate. Outputs without an
    expectation are not looked at.
    """
    bf16 = {spec.name for spec in specs if spec.datatype == "BF16"}
    for name, wanted in expected.items():
        fault = _compare(wanted, got[name], rtol, atol, name in bf16) if name in got else "is missing"
        if fault:
            return f"output '{name}' {fault}"
    return None


def _compare(wanted: Array, answer: Array, rtol: float, atol: float, bf16: bool) -> str | None:
    if answer.dtype != wanted.dtype:
        return f"has dtype {answer.dtype}, its golden example {wanted.dtype}"
    if answer.shape != wanted.shape:
        return f"has shape {list(answer.shape)}, its golden example {list(wanted.shape)}"
    if wanted.dtype == object:
        return _compare_elements(_as_bytes(wanted), _as_bytes(answer))
    if bf16:
        return _compare_floats(_decode_bf16(wanted), _decode_bf16(answer), rtol, atol)
    if np.issubdtype(wanted.dtype, np.floating):
        return _compare_floats(wanted.astype(np.float64), answer.astype(np.float64), rtol, atol)
    return _compare_elements(wanted, answer)


def _compare_floats(wanted: NDArray[np.float64], answer: NDArray[np.float64], rtol: float, atol: float) -> str | None:
    equal = (wanted == answer) | (np.isnan(wanted) & np.isnan(answer))
    finite = np.isfinite(wanted) & np.isfinite(answer)
    with np.errstate(over="ignore", invalid="ignore"):
        difference = np.where(equal, 0.0, np.where(finite, np.abs(answer - wanted), np.inf))
        beyond = ~equal & (~finite | (difference > atol + rtol * np.abs(wanted)))
    if not beyond.any():
        return None
    where = np.unravel_index(int(np.argmax(np.where(beyond, difference, -1.0))), wanted.shape)
    return (
        f"differs from its golden example in {np.count_nonzero(beyond)} of {wanted.size} elements"
        f" (rtol {rtol:g}, atol {atol:g}); worst difference {difference[where]:.6g} at {_position(where)}:"
        f" expected {wanted[where]:.9g}, got {answer[where]:.9g}"
    )


def _compare_elements(wanted: Array, answer: Array) -> str | None:
    beyond = np.asarray(wanted != answer, dtype=np.bool_)
    if not beyond.any():
        return None
    where = np.unravel_index(int(np.argmax(beyond)), wanted.shape)
    return (
        f"differs from its golden example in {np.count_nonzero(beyond)} of {wanted.size} elements, which must be equal;"
        f" first at {_position(where)}: expected {wanted[where]!r}, got {answer[where]!r}"
    )


def _decode_bf16(bits: Array) -> NDArray[np.float64]:
    # bfloat16 is the upper half of a float32; ascontiguousarray would make a scalar 1-D, hence the copy
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def _as_bytes(array: Array) -> NDArray[np.object_]:
    """Elements as `bytes`, as they travel: "a" and b"a" are the same BYTES element."""
    flat = np.empty(array.size, dtype=object)
    flat[:] = [element if isinstance(element, bytes) else str(element).encode() for element in array.ravel()]
    return flat.reshape(array.shape)


def _position(where: tuple[np.intp, ...]) -> str:
    return "[" + ",".join(str(int(index)) for index in where) + "]"

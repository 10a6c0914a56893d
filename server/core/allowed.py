"""Which elements a constraint does not allow, in the type that they travel in. **Pure.**

Floor 1. Bounds are compared in the input's own type: 0.1 of an FP32 input is the FP32 nearest to it, which is what callers send
for 0.1. NaN is neither too small nor too large: it is missing, which is what `complete` is about.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core.monitoring_settings import Constraint
from server.core.padding import pad_element
from server.core.tensors import NUMPY_DTYPES, TensorSpec

Test = Callable[[NDArray[Any]], NDArray[np.bool_]]
"""Which elements break it, of elements of any shape."""

_SHOWN = 8
"""Values of one_of that are shown."""


def kinds_of(constraint: Constraint) -> list[str]:
    """Which constraints a table of settings states."""
    stated = {
        "at_least": constraint.at_least is not None,
        "at_most": constraint.at_most is not None,
        "one_of": bool(constraint.one_of),
        "complete": constraint.complete,
        "finite": constraint.finite,
    }
    return [kind for kind, present in stated.items() if present]


def said_of(constraint: Constraint, kind: str) -> str:
    """A constraint as a caller is told of it.

    >>> said_of(Constraint(name="age", at_most=130), "at_most"), said_of(Constraint(name="age", finite=True), "finite")
    ('at_most = 130', 'finite')
    """
    return kind if kind in ("complete", "finite") else f"{kind} = {_shown(getattr(constraint, kind))}"


def test_of(constraint: Constraint, kind: str, spec: TensorSpec) -> Test | None:
    """The test of an input's elements as they travel; None where no value can break it.

    What cannot be told from the padding of free dimensions breaks nothing: else the answer would depend on the neighbours.
    Raises: ValueError for what cannot be meant of this input, or what nothing could meet.
    """
    test = _TESTS[kind](constraint, spec)
    if test is None:
        return None
    plain = test
    if spec.datatype == "BF16":
        plain = lambda elements: test(_from_bf16(elements))  # noqa: E731 - as its neighbours are
    if not spec.pad_to:
        return plain
    pad = pad_element(spec)
    return lambda elements: plain(elements) & (elements != pad)


def _shown(value: float | Sequence[str | int]) -> str:
    if isinstance(value, Sequence):
        more = f", and {len(value) - _SHOWN} more" if len(value) > _SHOWN else ""
        return f"[{', '.join(map(repr, value[:_SHOWN]))}{more}]"
    return f"{value:g}" if value == float(f"{value:g}") else repr(value)


def _from_bf16(bits: NDArray[Any]) -> NDArray[Any]:
    """BF16 is the upper half of FP32."""
    numbers: NDArray[np.float32] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return numbers


def _is_float(spec: TensorSpec) -> bool:
    return spec.datatype == "BF16" or spec.datatype.startswith("FP")


def _limits(spec: TensorSpec) -> tuple[int, int]:
    dtype: Any = NUMPY_DTYPES[spec.datatype]
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _check_numbers(kind: str, spec: TensorSpec) -> None:
    if spec.datatype in ("BYTES", "BOOL"):
        raise ValueError(f"{kind} is of numbers, and '{spec.name}' is {spec.datatype}")


def _bound(kind: str, spec: TensorSpec, value: float) -> Any:
    """A bound in the input's type; None where every value is inside it. Raises: ValueError where none is."""
    _check_numbers(kind, spec)
    upwards = kind == "at_least"
    if not _is_float(spec):
        limits = _limits(spec)
        whole = ceil(value) if upwards else floor(value)
        if whole > limits[1] if upwards else whole < limits[0]:
            raise ValueError(f"no {spec.datatype} meets {kind} = {_shown(value)} of '{spec.name}'")
        return None if (whole <= limits[0] if upwards else whole >= limits[1]) else whole
    element: Any = pad_element(TensorSpec(spec.name, spec.datatype, (), pad_value=value))
    if spec.datatype == "BF16":
        element = _from_bf16(np.array([element]))[0]
    if np.isfinite(element):
        return element
    if (element > 0) == upwards:
        raise ValueError(f"no finite {spec.datatype} meets {kind} = {_shown(value)} of '{spec.name}'")
    return np.nextafter(element, element.dtype.type(0))  # beyond it is only infinity


def _at_least(constraint: Constraint, spec: TensorSpec) -> Test | None:
    assert constraint.at_least is not None
    bound = _bound("at_least", spec, constraint.at_least)
    return None if bound is None else lambda elements: elements < bound


def _at_most(constraint: Constraint, spec: TensorSpec) -> Test | None:
    assert constraint.at_most is not None
    bound = _bound("at_most", spec, constraint.at_most)
    return None if bound is None else lambda elements: elements > bound


def _one_of(constraint: Constraint, spec: TensorSpec) -> Test:
    if _is_float(spec):
        raise ValueError(f"one_of is of texts or integers, and '{spec.name}' is {spec.datatype}")
    if spec.datatype == "BYTES":
        texts = frozenset(each.encode() for each in constraint.one_of if isinstance(each, str))
        if len(texts) < len(set(constraint.one_of)):
            raise ValueError(f"one_of of '{spec.name}' holds what is no text")
        return lambda elements: _other_texts(elements, texts)
    dtype = NUMPY_DTYPES[spec.datatype]
    low, high = (0, 1) if spec.datatype == "BOOL" else _limits(spec)
    for value in constraint.one_of:
        if isinstance(value, str) or not low <= value <= high:
            raise ValueError(f"one_of of '{spec.name}' holds {value!r}, which is no {spec.datatype}")
    allowed = np.unique(np.array([int(value) for value in constraint.one_of], dtype=dtype))
    return lambda elements: ~np.isin(elements, allowed)


def _other_texts(elements: NDArray[Any], allowed: Collection[bytes]) -> NDArray[np.bool_]:
    flat = elements.ravel().tolist()
    return np.fromiter((each not in allowed for each in flat), np.bool_, len(flat)).reshape(elements.shape)


def _complete(constraint: Constraint, spec: TensorSpec) -> Test | None:
    if spec.datatype == "BYTES":
        return lambda elements: elements == b""
    return np.isnan if _is_float(spec) else None


def _finite(constraint: Constraint, spec: TensorSpec) -> Test | None:
    _check_numbers("finite", spec)
    return (lambda elements: ~np.isfinite(elements)) if _is_float(spec) else None


_TESTS: Mapping[str, Callable[[Constraint, TensorSpec], Test | None]] = {
    "at_least": _at_least,
    "at_most": _at_most,
    "one_of": _one_of,
    "complete": _complete,
    "finite": _finite,
}

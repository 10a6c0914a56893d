"""What the fast lane is told of a version that serves. **Pure.**

Floor 3: the lane answers for plain requests to it; all else it leaves to the door's own handlers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from server.core.padding import pad_element
from server.core.signature import Signature
from server.core.tensors import TensorSpec
from server.dataplane.interface import QueueRules

_MOST_INPUTS = 64
"""A set of inputs is a mask of so many bits."""
_MOST_OPTIONAL = 8
"""With more optional inputs than this, only all of them or none are for the fast lane: sets double with each."""


@dataclass(frozen=True, slots=True)
class RouteRules:
    """One version by what its requests must be like. Units: microseconds; 0 is no timeout.

    `fits` says whether requests with inputs of these names can be run.
    """

    rules: QueueRules
    default_timeout_us: int
    allow_timeout_override: bool
    priority_levels: int
    default_priority: int
    has_features: bool
    fits: Callable[[frozenset[str]], bool]


def masks(signature: Signature, fits: Callable[[frozenset[str]], bool]) -> list[int]:
    """The sets of inputs that a request may bring, as masks of the inputs' places; none where there are too many inputs.

    >>> from server.core.tensors import TensorSpec
    >>> inputs = (TensorSpec("a", "FP32", (1,)), TensorSpec("b", "FP32", (1,), optional=True))
    >>> masks(Signature("m", inputs, (), 1), lambda names: True)
    [1, 3]
    """
    if len(signature.inputs) > _MOST_INPUTS:
        return []
    optional = [index for index, spec in enumerate(signature.inputs) if spec.optional]
    required = [index for index, spec in enumerate(signature.inputs) if not spec.optional]
    counts = range(len(optional) + 1) if len(optional) <= _MOST_OPTIONAL else (0, len(optional))
    sets = ([*required, *chosen] for count in counts for chosen in combinations(optional, count))
    return [
        sum(1 << index for index in given) for given in sets if fits(frozenset(signature.inputs[index].name for index in given))
    ]


_Tensor = tuple[str, str, list[int], bool, list[int], bytes]
"""Name, datatype, shape, whether it is optional, the sizes its free dimensions are padded to, and one element of padding."""


def stated(signature: Signature) -> tuple[list[_Tensor], list[_Tensor]]:
    """Inputs and outputs as the native side takes them.

    >>> from server.core.tensors import TensorSpec
    >>> ids = TensorSpec("ids", "INT16", (-1,), pad_to=(4, 8), pad_value=1)
    >>> stated(Signature("m", (ids,), (TensorSpec("y", "FP32", (2,)),), 1))
    ([('ids', 'INT16', [-1], False, [4, 8], b'\\x01\\x00')], [('y', 'FP32', [2], False, [], b'')])
    """
    return [_stated(spec) for spec in signature.inputs], [_stated(spec) for spec in signature.outputs]


def _stated(spec: TensorSpec) -> _Tensor:
    padding = pad_element(spec).tobytes() if spec.pad_to else b""
    return spec.name, spec.datatype, list(spec.shape), spec.optional, list(spec.pad_to), padding

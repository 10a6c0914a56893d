"""Operators of the allow-list that torch's CPU kernels do not check far enough, checked here before they are called. **Pure.**

What goes wrong in them is no exception: the process dies, or rows of foreign memory are answered. Each guard takes the operator
as torch gives it and answers as it does, but for those arguments. Floor 2, beside its one user.
Source: every operator of the list was called with arguments at and beyond its limits, each call in a process of its own (torch
2.13, x86-64, 2026-11-21).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MOST = 2**63

Operator = Callable[..., Any]


def guarded(step: str, operator: Operator) -> Operator:
    """The operator of a step ("name.overload"), behind its guard if it needs one."""
    guard = _GUARDS.get(step)
    return operator if guard is None else guard(operator)


def _divide(operator: Operator) -> Operator:
    """The smallest integer by -1, rounded to zero: its quotient has no place in a register, and the processor traps."""

    def divide(self: Any, other: Any, **rounding: Any) -> Any:
        if rounding.get("rounding_mode") != "trunc":
            return operator(self, other, **rounding)
        if isinstance(other, int | float):
            # -1 as an unsigned number is another one, and as a float harmless
            negates = type(other) is int and other == -1 and self.dtype.is_signed
            return operator(self, 1, **rounding).neg() if negates else operator(self, other, **rounding)
        if other.dtype.is_floating_point or not other.dtype.is_signed:
            return operator(self, other, **rounding)
        negated = other.eq(-1)
        quotient = operator(self, other.masked_fill(negated, 1), **rounding)
        return quotient.where(negated.logical_not(), quotient.neg())

    return divide


def _arange(operator: Operator) -> Operator:
    """As many numbers as 64 bits cannot count: the same trap."""

    def arange(*bounds: Any, **keywords: Any) -> Any:
        named = [keywords[name] for name in ("start", "end", "step") if name in keywords]
        if any(not abs(bound) < _MOST // 4 for bound in (*bounds, *named)):
            raise ValueError("arange over more than 64 bits can count")
        return operator(*bounds, **keywords)

    return arange


def _normalize(operator: Operator) -> Operator:
    """The kernel takes it on trust that there are as many statistics as channels, and reads what lies behind them."""

    def normalize(input: Any, *arguments: Any, **keywords: Any) -> Any:
        named = [keywords[name] for name in ("weight", "bias", "running_mean", "running_var") if name in keywords]
        for statistics in (*arguments[:4], *named):
            if statistics is not None and statistics.shape != input.shape[1:2]:
                raise ValueError(f"statistics of shape {list(statistics.shape)} for {list(input.shape)[1:2]} channels")
        return operator(input, *arguments, **keywords)

    return normalize


def _lstm(operator: Operator) -> Operator:
    """oneDNN's kernel takes every shape on trust but that of its input."""

    def lstm(
        input: Any,
        hx: Sequence[Any],
        params: Sequence[Any],
        has_biases: Any,
        num_layers: Any,
        dropout: Any,
        train: Any,
        bidirectional: Any,
        batch_first: Any,
    ) -> Any:
        sides = 2 if bidirectional else 1
        rows = input.shape[0 if batch_first else 1]
        answered, kept = (int(state.shape[-1]) for state in hx)
        wanted: list[tuple[int, ...]] = [(num_layers * sides, rows, answered), (num_layers * sides, rows, kept)]
        for layer in range(min(num_layers, len(params))):
            width = input.shape[-1] if layer == 0 else answered * sides
            biases = [(4 * kept,)] * 2 if has_biases else []
            projection = [(answered, kept)] if answered != kept else []
            wanted += [(4 * kept, width), (4 * kept, answered), *biases, *projection] * sides
        tensors = [*hx, *params]
        if [tuple(each.shape) for each in tensors] != wanted or any(each.dtype != input.dtype for each in tensors):
            raise ValueError("states and weights of an LSTM that do not fit its input or each other")
        return operator(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)

    return lstm


_GUARDS: Mapping[str, Callable[[Operator], Operator]] = {
    "div.Tensor_mode": _divide,
    "div.Scalar_mode": _divide,
    "arange.default": _arange,
    "arange.start": _arange,
    "arange.start_step": _arange,
    "_native_batch_norm_legit_no_training.default": _normalize,
    "lstm.input": _lstm,
}

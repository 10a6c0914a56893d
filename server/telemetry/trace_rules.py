"""Which requests are traced, and how that is changed while the server runs. **Pure.**

Floor 2. Three layers, as in Triton: what the server was started with, what callers have set for all models, what they have set
for one. A layer states some settings; the others are those of the layer below. Every change begins to count anew.
Source: triton-inference-server/server, src/tracer.cc and src/grpc/grpc_server.cc, 2026-08; the texts are Triton's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.core.errors import InvalidRequest, Unsupported

LEVELS = ("TIMESTAMPS", "TENSORS")
UNLIMITED = -1
_INT32_MAX = 2**31 - 1
_UINT32_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class TraceRules:
    """The settings in force for some requests, under their names on the wire.

    `trace_level` empty: off. One request in `trace_rate` is traced, until `trace_count` were; `UNLIMITED`: for ever.
    `log_frequency`: traces per numbered file, 0 for one file.
    """

    trace_level: frozenset[str] = frozenset()
    trace_rate: int = 1000
    trace_count: int = UNLIMITED
    log_frequency: int = 0

    def problem(self, mode: str, file: str) -> str:
        """Why these rules cannot be followed; "" if they can. What is off can always be."""
        if not self.trace_level:
            return ""
        if mode == "opentelemetry":
            return "trace level TENSORS is not supported by mode opentelemetry" if "TENSORS" in self.trace_level else ""
        if self.trace_rate == 0:
            return "sample rate must be non-zero"
        return "" if file else "trace file name is not given"


class Quota:
    """Counts the requests that one set of rules is for. Ownership: whoever holds `TraceLayers`."""

    def __init__(self, rules: TraceRules) -> None:
        self.rules = rules
        self._seen = 0
        self._left = rules.trace_count

    def now(self) -> TraceRules:
        """The rules, with what is left of their count."""
        return replace(self.rules, trace_count=self._left)

    def exhausted(self) -> bool:
        """Whether no further request is traced for its turn."""
        return not self.rules.trace_level or not self.rules.trace_rate or self._left == 0

    def take(self, forced: bool) -> bool:
        """Whether this request is traced: every `trace_rate`th while there is something left, and any that is `forced`.

        A forced one counts like every other, and does not end with the count.
        """
        if not self.rules.trace_level:
            return False
        if self.exhausted():
            return forced
        self._seen += 1
        turn = self._seen % self.rules.trace_rate == 0
        if turn and self._left > 0:
            self._left -= 1
        return turn or forced


Stated = Mapping[str, Any]
"""What a layer states: values by name of a field of `TraceRules`. In a change, None takes a statement back."""


class TraceLayers:
    """The rules of every model. Ownership: one thread at a time."""

    def __init__(self, default: TraceRules, mode: str, file: str) -> None:
        self._default = default
        self._mode = mode
        self._file = file
        self._everywhere: dict[str, Any] = {}
        self._common = Quota(default)
        self._models: dict[str, tuple[dict[str, Any], Quota]] = {}

    def quota(self, model: str) -> Quota:
        """What a model's requests are counted by; "" for those of all models without settings of their own."""
        found = self._models.get(model)
        return self._common if found is None else found[1]

    def quotas(self) -> list[Quota]:
        """Every one there is."""
        return [self._common, *(quota for _, quota in self._models.values())]

    def change(self, model: str, changes: Stated) -> None:
        """State, or no longer state, settings of a model, or of all where `model` is "". All of it, or nothing.

        Raises: InvalidRequest where the outcome cannot be followed.
        """
        common = self._common
        everywhere, models = self._everywhere, dict(self._models)
        if model:
            stated = _changed(*models.get(model, ({}, common)), changes)
            models[model] = stated, self._quota(common.now(), stated)
            if not stated:
                del models[model]
        else:
            everywhere = _changed(everywhere, common, changes)
            common = self._quota(self._default, everywhere)
            for name, (stated, quota) in models.items():
                stated = _changed(stated, quota, {})
                models[name] = stated, self._quota(common.rules, stated)
        self._common, self._everywhere, self._models = common, everywhere, models

    def _quota(self, below: TraceRules, stated: Stated) -> Quota:
        rules = replace(below, **stated)
        if problem := rules.problem(self._mode, self._file):
            raise InvalidRequest(f"Attempting to set invalid trace setting :{problem}")
        return Quota(rules)


def _changed(stated: Stated, quota: Quota, changes: Stated) -> dict[str, Any]:
    """What a layer states after a change; a count that it stated goes on from what is left of it."""
    left = {"trace_count": quota.now().trace_count} if "trace_count" in stated else {}
    return {name: value for name, value in {**stated, **left, **changes}.items() if value is not None}


def changes_of(values: Mapping[str, Sequence[str]], mode: str) -> Stated:
    """The change that a call asks for: an empty list takes a setting back.

    Raises: Unsupported, InvalidRequest. Triton ignores names and levels that it does not know; here they are refused.
    """
    for name, subject in (("trace_file", "trace file location"), ("trace_mode", "trace mode")):
        if name in values and not (name == "trace_mode" and list(values[name]) == [mode]):
            raise Unsupported(f"{subject} can not be updated through network protocol")
    changes: dict[str, Any] = {}
    for name, texts in values.items():
        if name == "trace_mode":
            continue
        read = _READERS.get(name)
        if read is None:
            raise InvalidRequest(f"unrecognized trace setting '{name}'.")
        changes[name] = read(name, texts) if texts else None
    return changes


def _level(name: str, texts: Sequence[str]) -> frozenset[str]:
    if "OFF" in texts:
        if len(texts) > 1:
            raise InvalidRequest("Expect only one trace level 'OFF' is specified")
        return frozenset()
    for text in texts:
        if text not in LEVELS:
            raise InvalidRequest(f"unrecognized trace level '{text}', expected OFF, {' or '.join(LEVELS)}.")
    return frozenset(texts)


def _number(name: str, texts: Sequence[str], least: int, most: int) -> int:
    if len(texts) != 1:
        raise InvalidRequest(f"expect only 1 value for '{name}'")
    (text,) = texts
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise InvalidRequest(f"Unable to parse '{name}', got: {text}")
    # no longer than this: what has more digits is out of range, and never becomes a number
    number = int(text) if len(text) <= len(str(_UINT32_MAX)) else most + 1
    if name == "trace_count" and number < least:
        raise InvalidRequest(f"Unable to parse '{name}'. Expecting value >= {least}, got: {text}")
    if not least <= number <= most:
        raise InvalidRequest(f"Unable to parse '{name}', value is out of range [ {least}, {most} ], got: {text}")
    return number


def _unsigned(name: str, texts: Sequence[str]) -> int:
    return _number(name, texts, 0, _UINT32_MAX)


def _count(name: str, texts: Sequence[str]) -> int:
    return _number(name, texts, UNLIMITED, _INT32_MAX)


_READERS: dict[str, Callable[[str, Sequence[str]], Any]] = {
    "trace_level": _level,
    "trace_rate": _unsigned,
    "trace_count": _count,
    "log_frequency": _unsigned,
}


def values_of(rules: TraceRules, mode: str, file: str) -> dict[str, list[str]]:
    """Rules as a call is told them; a file and how often it is changed only where there are files."""
    values = {
        "trace_level": [level for level in LEVELS if level in rules.trace_level] or ["OFF"],
        "trace_rate": [str(rules.trace_rate)],
        "trace_count": [str(rules.trace_count)],
        "trace_mode": [mode],
    }
    if mode == "triton":
        values |= {"log_frequency": [str(rules.log_frequency)], "trace_file": [file]}
    return values

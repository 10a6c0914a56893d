"""An outcome's way: what a caller reports is understood by the settings of the model it speaks of, checked, and taken.

Floor 5. Values in, values out; the door turns them into messages. Nothing of it is on the way of an inference.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.core.errors import InvalidRequest, NotFound, NotReady, Unsupported
from server.core.monitoring_settings import QualitySettings
from server.lifecycle.published import Published, parse_version
from server.lifecycle.replica import Replica
from server.monitoring.outcome import Outcome, Receipt, ReceiptStatus

MOST_ROW = 2**31 - 1
"""The last row that samples can speak of."""

_KEPT_NAMES = 32


@dataclass(frozen=True, slots=True)
class Reported:
    """What a caller says was true of one row of one prediction.

    `version`: a number, an alias, or "" for whichever answered. `label`: a number, of a binary model whether it was positive,
    of several classes the name of one; None where it is not stated.
    """

    model: str
    version: str
    prediction_id: str
    row: int
    label: float | bool | str | None
    observed_us: int = 0


class Taking(Protocol):
    """`server.monitoring.outcomes.Outcomes`, as far as reports reach it."""

    def report(self, outcome: Outcome) -> Receipt:
        """What becomes of an outcome."""
        ...

    def quality_of(self, model: str, version: int = 0) -> QualitySettings | None:
        """How outcomes of a version are understood that may serve no more."""
        ...


class Outcomes:
    """Thread-safe. Every report is understood by one published table."""

    def __init__(
        self,
        published: Callable[[], Published],
        taking: Taking | None,
        forward: Callable[[Outcome], None] | None = None,
    ) -> None:
        """`taking`: who joins outcomes in this process. `forward`: where they go if that is another one; it may take long. With
        neither this server takes none.
        """
        self._published = published
        self._taking = taking
        self._forward = forward
        self._names: OrderedDict[tuple[int, str], dict[str, int]] = OrderedDict()

    @property
    def may_wait(self) -> bool:
        """Whether a report may take long, and so belongs on a thread."""
        return self._forward is not None

    def report(self, reported: Reported) -> Receipt:
        """Take one outcome. Where it is forwarded the receipt says no more than that it was.

        Raises: InvalidRequest for what cannot be true of any prediction of this model; NotFound, NotReady for an unknown model
        or version; Unsupported for a model without `[monitoring.quality]`; what `forward` raises.
        """
        if self._taking is None and self._forward is None:
            raise Unsupported("this server takes no outcomes: its setting monitoring.sink is 'none'")
        _check_place(reported)
        version, settings, replica = self._meant(reported)
        if settings is None:
            raise Unsupported(f"model '{reported.model}' takes no outcomes: its settings have no [monitoring.quality]")
        label = self._label(reported, settings, replica)
        outcome = Outcome(reported.model, version, reported.prediction_id, reported.row, label, reported.observed_us)
        if self._forward is not None:
            self._forward(outcome)
            return Receipt(ReceiptStatus.ACCEPTED)
        assert self._taking is not None
        return self._taking.report(outcome)

    def _meant(self, reported: Reported) -> tuple[int, QualitySettings | None, Replica | None]:
        """The version (0: whichever answered), its settings, and its replica where it serves."""
        try:
            replica = self._published().lookup(reported.model, reported.version)
        except (NotFound, NotReady):
            # it may have served until a moment ago, and be known by its predictions
            gone = 0 if not reported.version else parse_version(reported.version)
            settings = None if self._taking is None else self._taking.quality_of(reported.model, gone)
            if settings is None:
                raise
            return gone, settings, None
        monitoring = replica.settings.monitoring
        settings = monitoring.quality if monitoring.enabled else None
        return replica.key.version if reported.version else 0, settings, replica

    def _label(self, reported: Reported, settings: QualitySettings, replica: Replica | None) -> float:
        """The label as a number, checked. Raises: InvalidRequest."""
        label = reported.label
        if label is None:
            raise InvalidRequest("an outcome needs one of value, positive and name")
        if isinstance(label, str):
            return float(self._class_named(label, settings, replica))
        if isinstance(label, bool):
            if settings.kind != "binary":
                raise InvalidRequest(
                    f"'positive' is of a binary model, and '{reported.model}' is one of {_KINDS[settings.kind]}"
                )
            return float(label)
        if not math.isfinite(label):
            raise InvalidRequest("the value of an outcome must be a finite number")
        if settings.kind == "binary" and label not in (0.0, 1.0):
            raise InvalidRequest(f"the value of a binary outcome is 0 or 1, not {label!r}")
        if settings.kind == "multiclass":
            classes = None if replica is None else _classes(settings, replica)
            if not (label.is_integer() and 0 <= label < (classes or 2**31)):
                known = "" if classes is None else f" below {classes}"
                raise InvalidRequest(
                    f"the value of an outcome is the number of a class, an integer from 0 on{known}, not {label!r}"
                )
        return label

    def _class_named(self, name: str, settings: QualitySettings, replica: Replica | None) -> int:
        if settings.kind != "multiclass":
            raise InvalidRequest(f"'name' is of a model of several classes, and this is one of {_KINDS[settings.kind]}")
        if replica is None:
            raise InvalidRequest("the names of classes are known while a version serves; state the number of the class instead")
        output = _output(settings, replica)
        place = (replica.queue_id, output)
        known = self._names.get(place)
        if known is None:
            labels = replica.labels.get(output, ())
            known = self._names[place] = {label: index for index, label in reversed(list(enumerate(labels)))}
            if len(self._names) > _KEPT_NAMES:
                self._names.popitem(last=False)
        if name not in known or not name:
            what = f"no class named '{name}'" if known else "no names of classes"
            raise InvalidRequest(f"output '{output}' of model '{replica.key.model}' has {what}")
        return known[name]


_KINDS = {"binary": "two classes by one probability", "multiclass": "several classes", "regression": "estimates"}


def _check_place(reported: Reported) -> None:
    """Raises: InvalidRequest."""
    if not reported.prediction_id:
        raise InvalidRequest("an outcome needs the id of its prediction's request; without one no prediction can be told")
    if not 0 <= reported.row <= MOST_ROW:
        raise InvalidRequest(f"a row is a number from 0 to {MOST_ROW}, not {reported.row}")
    if reported.observed_us < 0:
        raise InvalidRequest("observed_at_us is in microseconds since 1970, and not negative")


def _output(settings: QualitySettings, replica: Replica) -> str:
    """The output that has the score; "" where the model has none."""
    return settings.output or next((spec.name for spec in replica.signature.outputs), "")


def _classes(settings: QualitySettings, replica: Replica) -> int | None:
    """How many numbers a score has; None where the model does not tell."""
    spec = replica.signature.output_names.get(_output(settings, replica))
    dims = () if spec is None else spec.shape
    return None if not dims or min(dims) < 0 else math.prod(dims)

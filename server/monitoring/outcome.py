"""Outcomes: ground truth that arrives later, and what became of it. **Pure.**"""

from dataclasses import dataclass
from enum import StrEnum

from server.core.hashing import id_hash


class ReceiptStatus(StrEnum):
    """What became of an outcome that was reported."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    REPLACED = "replaced"
    LATE = "late"
    NOT_SAMPLED = "not_sampled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was true of one row of one prediction.

    `prediction_id`: the id of the request. `version` 0: whichever version answered it. `label`: of a binary model 0 or 1, of
    several classes the number of the class, of a regression the value. `observed_us`: when it was observed, 0 now.
    """

    model: str
    version: int
    prediction_id: str
    row: int
    label: float
    observed_us: int = 0

    @property
    def id_hash(self) -> int:
        """What samples know the prediction by."""
        return id_hash(self.prediction_id)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to an outcome. `version` 0: no prediction of that id was sampled."""

    status: ReceiptStatus
    version: int = 0

"""The closed list of things that go wrong with features. **Pure.**

Any other exception that leaves this package is a bug.
"""

from collections.abc import Sequence


class FeatureError(Exception):
    """Base of the closed list. `str(error)` is for the person who has to act on it."""


class DefinitionError(FeatureError):
    """A definition that cannot work, or whose function does not give what it declares."""


class EventError(FeatureError):
    """Columns (events, labels, a call's values) that are not what is declared: names, types, lengths, nulls, ranges."""


class EntityError(FeatureError):
    """A value of a join key that cannot be one."""


class ContractError(FeatureError):
    """What is installed is not what was recorded. `differences` has one line each."""

    def __init__(self, text: str, differences: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join((text, *differences)))
        self.differences = tuple(differences)


class StoreError(FeatureError):
    """The store could not be asked, or refused."""


class StoreTimeout(StoreError):
    """The store did not answer within the budget."""


class StorePartial(StoreError):
    """Some of the keys were answered, as when one node of a cluster is gone. Whoever knows no better treats it as `StoreError`.

    `rows`: as `Store.read` returns them, None also where nobody answered; `unanswered`: the positions of those, ascending.
    """

    def __init__(self, text: str, rows: Sequence[bytes | None], unanswered: Sequence[int]) -> None:
        super().__init__(text)
        self.rows = list(rows)
        self.unanswered = tuple(unanswered)

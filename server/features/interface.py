"""What the floors above ask of the features of one version in service. Pure: names, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.core.signature import Signature
from server.core.tensors import Array

STATUSES_OUTPUT = "podium_feature_statuses"
"""The name by which statuses travel beside a batch's outputs, as if they were one: uint8 `[N, F]`. No model's output has it:
names that begin with `podium_` are the server's own."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A batch with its features.

    Shapes: `inputs` `[P, ...]`, as the backend takes them; `statuses` uint8 `[N, F]` in the order of `Features.names`;
    `refused` bool `[N]`: rows whose requests must be answered by an error.
    """

    inputs: dict[str, Array]
    statuses: NDArray[np.uint8]
    refused: NDArray[np.bool_]


class Features(Protocol):
    """The features of one version on one device. Thread-safe.

    `signature` is what callers see: join keys and request values beside the model's own inputs, of which those that are
    features are optional. `names`: the features, in the order of statuses.
    """

    signature: Signature
    names: tuple[str, ...]

    def check(self, given: frozenset[str]) -> None:
        """Raises: InvalidRequest where a request with inputs of these names can neither be computed nor run as it is."""
        ...

    def join(self, inputs: Mapping[str, Array], rows: int, budget_s: float) -> Joined:
        """Find, compute and bind the features of one batch, whose requests all have inputs of the same names.

        Shapes: `inputs` `[P, ...]`, of which the first `rows` are real. Returns within the budget, as far as the store is
        concerned: what it did not say in time is a status, not an error. Raises: FeaturesUnavailable for a batch that cannot
        be computed at all (a definition that fails on its values).
        """
        ...

"""The network, with all preprocessing inside it.

`DelayModel` takes what `inputs.Inputs` lists, as a caller sends it (categories already looked up as codes; `export.py` puts
that lookup into the graph as well). Every operation works on one row at a time: a row's answer cannot depend on its batch.
This file never reads data and never trains.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.flight_delay.data import Flights
from models.flight_delay.inputs import SCHEDULE, Inputs

UNKNOWN = 0
"""The code of every category that the training rows did not have."""

_SPECIAL = ("day_of_week", "departure_minute", "wind_direction_deg")
_HARMONICS = (1, 2, 3)
_CLIP_PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True)
class Fitted:
    """What is learned by counting, from training rows only.

    Shapes: each array is `[len(inputs.values)]`. `vocabularies` maps a category's values to codes from 1 on; 0 is `UNKNOWN`.
    """

    vocabularies: Mapping[str, Mapping[bytes, int]]
    fill: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    inputs: Inputs = SCHEDULE


def fit(flights: Flights, inputs: Inputs = SCHEDULE) -> Fitted:
    """Vocabularies, and per value: median (fills what is missing), clipping range, mean and spread.

    Values are clipped to the training range without its outermost 0.1 %: one sensor reported wind of 1,048 mph.
    """
    vocabularies = {
        name: {value: code for code, value in enumerate(sorted(set(flights.inputs[name].tolist())), start=UNKNOWN + 1)}
        for name in inputs.categories
    }
    values = stack_values(flights, inputs).astype(np.float64)
    fill = np.nanmedian(values, axis=0)
    low, high = np.nanpercentile(values, _CLIP_PERCENTILES, axis=0)
    clipped = np.clip(np.where(np.isnan(values), fill, values), low, high)
    scale = np.maximum(clipped.std(axis=0), 1e-6)
    fitted = [each.astype(np.float32) for each in (fill, low, high, clipped.mean(axis=0), scale)]
    return Fitted(vocabularies, fitted[0], fitted[1], fitted[2], fitted[3], fitted[4], inputs)


def stack_values(flights: Flights, inputs: Inputs) -> NDArray[np.float32]:
    """All inputs that are numbers. Shapes: `[rows, len(inputs.values)]`."""
    return np.stack([flights.inputs[name].astype(np.float32) for name in inputs.values], axis=1)


def encode(flights: Flights, fitted: Fitted) -> NDArray[np.int64]:
    """Codes of the categories, as the graph's own lookup gives them. Shapes: `[rows, categories]`."""
    names = fitted.inputs.categories
    columns = [[fitted.vocabularies[name].get(value, UNKNOWN) for value in flights.inputs[name].tolist()] for name in names]
    return np.array(columns, dtype=np.int64).reshape(len(names), flights.rows).T


class DelayModel(nn.Module):  # type: ignore[misc]  # torch is untyped here (pyproject: follow_imports)
    """Embeddings and a small perceptron beside a linear term; the answer is the probability of arriving late.

    Shapes: `forward` takes one `[rows, 1]` tensor per input of the variant, in its order, categories as int64 codes.
    NaN is filled with the training median and marked, except in counts, where it cannot occur.
    """

    def __init__(self, fitted: Fitted, embedding: tuple[int, ...], hidden: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        for name in ("fill", "low", "high", "mean", "scale"):
            self.register_buffer(name, torch.tensor(getattr(fitted, name)))
        self.register_buffer("weekdays", torch.arange(1, 8, dtype=torch.float32))
        self.register_buffer("harmonics", torch.tensor(_HARMONICS, dtype=torch.float32) * (2 * math.pi / (24 * 60)))
        inputs = fitted.inputs
        self.categories, self.counts = len(inputs.categories), len(inputs.counts)
        self.weekday, self.minute, self.wind = (inputs.values.index(name) for name in _SPECIAL)
        sizes = [len(fitted.vocabularies[name]) + 1 for name in inputs.categories]
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size, width in zip(sizes, embedding, strict=True))
        for table in self.embeddings:
            nn.init.normal_(table.weight, std=0.1)
        width = len(inputs.values) - 1 + len(inputs.measures) + 2 * len(_HARMONICS) + 2 + 7 + sum(embedding)
        self.linear = nn.Linear(width, 1)
        layers: list[object] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.SiLU(), nn.Dropout(dropout)]
            width = size
        self.perceptron = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Probability of arriving more than 15 minutes late. Shapes: `[rows, 1]`."""
        codes = torch.cat(inputs[: self.categories], dim=1)
        values = torch.cat([column.to(torch.float32) for column in inputs[self.categories :]], dim=1)
        return torch.sigmoid(self.logit(codes, values))

    def logit(self, codes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The answer before the sigmoid. Shapes: `[rows, categories]`, `[rows, values]` -> `[rows, 1]`."""
        embedded = [table(codes[:, index]) for index, table in enumerate(self.embeddings)]
        row = torch.cat([self._features(values), *embedded], dim=1)
        return self.perceptron(row) + self.linear(row)

    def _features(self, values: torch.Tensor) -> torch.Tensor:
        missing = torch.isnan(values)
        clipped = torch.minimum(torch.maximum(torch.where(missing, self.fill, values), self.low), self.high)
        scaled = (clipped - self.mean) / self.scale
        daytime = clipped[:, self.minute : self.minute + 1] * self.harmonics
        wind = torch.deg2rad(clipped[:, self.wind : self.wind + 1])
        weekday = clipped[:, self.weekday : self.weekday + 1] == self.weekdays
        parts = [
            scaled[:, self.weekday + 1 :],
            missing[:, self.counts :].to(torch.float32),
            torch.sin(daytime),
            torch.cos(daytime),
            torch.sin(wind),
            torch.cos(wind),
            weekday.to(torch.float32),
        ]
        return torch.cat(parts, dim=1)

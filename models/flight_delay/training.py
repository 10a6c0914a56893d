"""The training loop: rows in, fitted network out.

Two calls with the same rows and settings give the same bits on one kind of CPU, whatever ran before: the seed is set in a
forked generator, only deterministic algorithms are allowed, and one thread adds up in one order. This file never reads
files and knows nothing of ONNX.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from models.flight_delay.data import Flights
from models.flight_delay.metrics import Floats, log_loss
from models.flight_delay.model import UNKNOWN, DelayModel, Fitted, encode, stack_values


@dataclass(frozen=True)
class Settings:
    """Hyperparameters. `patience`: epochs without a better log loss on the validation rows before training ends."""

    seed: int = 13
    epochs: int = 6
    patience: int = 3
    batch_rows: int = 1024
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    embedding: tuple[int, ...] = (6, 3, 8)
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.2
    unknown_ratio: float = 0.01
    """Share of category values hidden while training, so that the code for unknown ones learns a sensible answer."""


@dataclass(frozen=True)
class Trained:
    """The network of the best epoch, in evaluation mode, and the validation log loss after every epoch."""

    model: DelayModel
    best_epoch: int
    valid_log_loss: tuple[float, ...]


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread, one seed, deterministic algorithms only; what was set before returns on the way out."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(seed)
            yield
        finally:
            torch.use_deterministic_algorithms(strict)
            torch.set_num_threads(threads)


def train(rows: Flights, valid: Flights, fitted: Fitted, settings: Settings) -> Trained:
    """Train on `rows` and keep the epoch with the lowest log loss on `valid`."""
    with reproducible(settings.seed):
        model = DelayModel(fitted, settings.embedding, settings.hidden, settings.dropout)
        codes, values = torch.tensor(encode(rows, fitted)), torch.tensor(stack_values(rows, fitted.inputs))
        labels = torch.tensor(rows.late.astype(np.float32)).unsqueeze(1)
        optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
        steps = settings.epochs * -(-rows.rows // settings.batch_rows)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps, pct_start=0.1)
        losses: list[float] = []
        best_epoch, best_state = 0, copy.deepcopy(model.state_dict())
        for epoch in range(settings.epochs):
            model.train()
            for chosen in torch.randperm(rows.rows).split(settings.batch_rows):
                shown = codes[chosen]
                shown = shown.masked_fill(torch.rand(shown.shape) < settings.unknown_ratio, UNKNOWN)
                loss = nn.functional.binary_cross_entropy_with_logits(model.logit(shown, values[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            losses.append(log_loss(valid.late, predict(model, valid, fitted)))
            if losses[-1] <= min(losses):
                best_epoch, best_state = epoch, copy.deepcopy(model.state_dict())
            if epoch - best_epoch >= settings.patience:
                break
        model.load_state_dict(best_state)
        model.eval()
    return Trained(model, best_epoch, tuple(round(value, 6) for value in losses))


def predict(model: DelayModel, flights: Flights, fitted: Fitted) -> Floats:
    """Probabilities by torch itself; leaves the model in evaluation mode. Shapes: `[rows]`."""
    model.eval()
    with torch.inference_mode():
        logit = model.logit(torch.tensor(encode(flights, fitted)), torch.tensor(stack_values(flights, fitted.inputs)))
        probability: Floats = torch.sigmoid(logit)[:, 0].numpy().astype(np.float64)
    return probability

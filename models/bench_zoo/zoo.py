"""Which models the zoo has: how each is made, what it takes and gives, and in which batches it is measured.

`small` is the same code in a size that a test can afford. Never writes a file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.bench_zoo.networks import Dlrm, Perceptron, PooledBert, ResNet
from models.text_embed.bert import BertShape

SEED = 20_261_121
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """One model. `inputs`: type and shape of each, without the batch dimension, in the order of `forward`; of `small` likewise.

    `onnx`: whether it is exported as `model.onnx` too (FP32 alone). Units: `max_batch` rows.
    """

    make: Callable[[], nn.Module]
    small: Callable[[], nn.Module]
    inputs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    small_inputs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    output: str
    max_batch: int
    onnx: bool


def _ids(tokens: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {"input_ids": (torch.int64, (tokens,)), "attention_mask": (torch.int64, (tokens,))}


_TINY_BERT = BertShape(hidden=16, layers=2, heads=2, inner=32, vocabulary=50, positions=16)
_CATEGORIES = {"dense": (torch.float32, (13,)), "sparse": (torch.int64, (26,))}
_LARGE = BertShape(hidden=1024, layers=24, heads=16, inner=4096)

ZOO: Mapping[str, Entry] = {
    "mlp": Entry(
        lambda: Perceptron((16, 1024, 1024, 1024, 16)),
        lambda: Perceptron((16, 32, 32, 16)),
        {"x": (torch.float32, (16,))},
        {"x": (torch.float32, (16,))},
        "y",
        1024,
        onnx=True,
    ),
    "dlrm_mini": Entry(
        lambda: Dlrm(13, 26, 10_000, 64, 256, (256, 128, 64)),
        lambda: Dlrm(13, 26, 20, 8, 16, (16, 8)),
        _CATEGORIES,
        _CATEGORIES,
        "probability",
        1024,
        onnx=False,
    ),
    "resnet50": Entry(
        ResNet,
        lambda: ResNet((1, 1, 2), 8, 10),
        {"image": (torch.uint8, (224, 224, 3))},
        {"image": (torch.uint8, (48, 48, 3))},
        "scores",
        128,
        onnx=True,
    ),
    "bert_base": Entry(
        lambda: PooledBert(BertShape()), lambda: PooledBert(_TINY_BERT), _ids(128), _ids(12), "pooled", 64, onnx=True
    ),
    "bert_large": Entry(
        lambda: PooledBert(_LARGE), lambda: PooledBert(_TINY_BERT), _ids(384), _ids(12), "pooled", 32, onnx=False
    ),
}


def make(entry: Entry, dtype: str = "fp32", *, small: bool = False, seed: int = SEED) -> nn.Module:
    """A network of the zoo in eval mode: the same seed gives the same weights. Convolutions in channels-last order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = (entry.small if small else entry.make)().eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                # as after a training: with the defaults a norm would be the identity, and exporters could drop it
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network.to(DTYPES[dtype], memory_format=torch.channels_last)


def inputs(entry: Entry, rows: int, *, small: bool = False, seed: int = SEED) -> dict[str, Any]:
    """Random inputs as callers may bring them. Shapes: `[rows, *shape]`."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, (dtype, shape) in (entry.small_inputs if small else entry.inputs).items():
        if dtype == torch.float32:
            found[name] = torch.randn((rows, *shape), generator=generator)
        elif name == "attention_mask":
            lengths = torch.randint(1, shape[0] + 1, (rows, 1), generator=generator)
            found[name] = (torch.arange(shape[0]) < lengths).to(dtype)
        else:
            most = 256 if dtype == torch.uint8 else 50
            found[name] = torch.randint(0, most, (rows, *shape), generator=generator).to(dtype)
    return found

"""The networks of the benchmarks, written plainly, with random weights that a seed decides. Nothing is downloaded.

Source of the architectures: ResNet-50 "v1.5" (He et al. 2015, stride in the 3x3 convolution), BERT (Devlin et al. 2018), DLRM
(Naumov et al. 2019, in the size of a small recommender); `PARAMETERS` are the published counts.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, max_pool2d, relu

from models.text_embed.bert import Bert, BertShape

PARAMETERS = {"resnet50": 25_557_032, "bert_base": 109_482_240, "bert_large": 335_141_888}
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue, between 0 and 1."""


class Perceptron(nn.Module):  # type: ignore[misc]  # torch is untyped here (pyproject: follow_imports)
    """Dense layers with a relu between them. Computes in the type of its weights, takes and gives FP32."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shapes: `[rows, widths[0]]` to `[rows, widths[-1]]`."""
        return self.compute(x.to(self.layers[0].weight.dtype)).to(torch.float32)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """The same in one type throughout."""
        for number, layer in enumerate(self.layers):
            x = layer(x if number == 0 else relu(x))
        return x


class Dlrm(nn.Module):  # type: ignore[misc]
    """A recommender: categories by their embeddings, numbers by a perceptron, the products of all pairs, another perceptron.

    The tables of all categories are one, so that they are read by one operator. Any whole number is a category: it is taken
    modulo the table's rows, as hashed categories are.
    """

    def __init__(self, numbers: int, categories: int, table_rows: int, width: int, bottom: int, top: tuple[int, ...]) -> None:
        super().__init__()
        self.table_rows = table_rows
        self.tables = nn.Embedding(categories * table_rows, width)
        self.bottom = Perceptron((numbers, bottom, width))
        pairs = torch.tril_indices(categories + 1, categories + 1, -1)
        self.register_buffer("starts", torch.arange(categories) * table_rows)
        self.register_buffer("pairs", pairs[0] * (categories + 1) + pairs[1])
        self.top = Perceptron((pairs.shape[1] + width, *top, 1))

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """Shapes: `dense` FP32 `[rows, numbers]`, `sparse` INT64 `[rows, categories]`; a probability `[rows, 1]`."""
        below = relu(self.bottom.compute(dense.to(self.tables.weight.dtype)))
        found = self.tables(torch.remainder(sparse, self.table_rows) + self.starts)
        each = torch.cat([below.unsqueeze(1), found], 1)
        products = torch.bmm(each, each.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        answer: torch.Tensor = torch.sigmoid(self.top.compute(torch.cat([below, products], 1)).to(torch.float32))
        return answer


class Bottleneck(nn.Module):  # type: ignore[misc]
    """1x1, 3x3 and 1x1 convolutions around a residual sum."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.inward, self.inward_norm = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.across, self.across_norm = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.outward, self.outward_norm = nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)
        self.beside = nn.Identity()
        if stride != 1 or before != after:
            self.beside = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shapes: `[rows, channels, height, width]`."""
        inner = relu(self.inward_norm(self.inward(x)))
        inner = relu(self.across_norm(self.across(inner)))
        return relu(self.outward_norm(self.outward(inner)) + self.beside(x))


class ResNet(nn.Module):  # type: ignore[misc]
    """Images as decoders give them, rows of RGB bytes, to a score per class.

    The input's order of elements is what convolutions call channels last: no copy changes it on the way, and with weights in
    that order (`channels_last`) none of the convolutions does.
    """

    def __init__(self, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        before = width
        stages = []
        for stage, count in enumerate(blocks):
            for number in range(count):
                stages.append(Bottleneck(before, width << stage, 2 if number == 0 and stage > 0 else 1))
                before = 4 * (width << stage)
        self.blocks = nn.Sequential(*stages)
        self.scores = nn.Linear(before, classes)
        self.register_buffer("mean", 255 * torch.tensor(_MEAN))
        self.register_buffer("spread", 255 * torch.tensor(_SPREAD))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Shapes: UINT8 `[rows, height, width, 3]` to FP32 `[rows, classes]`."""
        x = (image.to(self.mean.dtype) - self.mean) / self.spread
        x = relu(self.stem_norm(self.stem(x.permute(0, 3, 1, 2))))
        x = self.blocks(max_pool2d(x, 3, 2, 1))
        scores: torch.Tensor = self.scores(adaptive_avg_pool2d(x, 1).flatten(1)).to(torch.float32)
        return scores


class PooledBert(nn.Module):  # type: ignore[misc]
    """Token ids to the pooled vector of the first one."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.encoder = Bert(shape)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Shapes: INT64 `[rows, tokens]` twice to FP32 `[rows, hidden]`."""
        return self.encoder.pooled(self.encoder(input_ids, attention_mask)).to(torch.float32)


def count(network: nn.Module) -> int:
    """Parameters of a network, as they are counted in publications: without running means and other buffers."""
    return sum(weight.numel() for weight in network.parameters())

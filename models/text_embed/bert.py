"""BERT's encoder, written plainly: the network of MiniLM, and of the bench zoo's BERT models.

Source: Devlin et al., "BERT" (2018), with the details of the reference weights: learned positions, LayerNorm after each
residual sum, gelu by the error function. Queries, keys and values are one matrix product. Without dropout: it never trains.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention


@dataclass(frozen=True)
class BertShape:
    """Sizes of an encoder. `pooler`: with the dense layer on the first token that the published counts include."""

    hidden: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    vocabulary: int = 30_522
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12
    pooler: bool = True


class Layer(nn.Module):  # type: ignore[misc]  # torch is untyped here (pyproject: follow_imports)
    """Self-attention and a perceptron, each with its residual sum and norm."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.attended = nn.Linear(shape.hidden, shape.hidden)
        self.attended_norm = nn.LayerNorm(shape.hidden, shape.epsilon)
        self.inner = nn.Linear(shape.hidden, shape.inner)
        self.outer = nn.Linear(shape.inner, shape.hidden)
        self.outer_norm = nn.LayerNorm(shape.hidden, shape.epsilon)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Shapes: `x` `[rows, tokens, hidden]`; `bias`, added to the scores, `[rows, 1, 1, tokens]`."""
        rows, tokens, hidden = x.shape
        parts = self.qkv(x).view(rows, tokens, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = self.attended_norm(x + self.attended(attended.transpose(1, 2).reshape(rows, tokens, hidden)))
        normed: torch.Tensor = self.outer_norm(x + self.outer(gelu(self.inner(x))))
        return normed


class Bert(nn.Module):  # type: ignore[misc]
    """Token ids to one vector per token; `pooled` to one per row."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.vocabulary, shape.hidden)
        self.positions = nn.Embedding(shape.positions, shape.hidden)
        self.types = nn.Embedding(shape.types, shape.hidden)
        self.norm = nn.LayerNorm(shape.hidden, shape.epsilon)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        if shape.pooler:
            self.pooler = nn.Linear(shape.hidden, shape.hidden)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Shapes: both inputs `[rows, tokens]` of whole numbers, 0 in the mask is padding; answers `[rows, tokens, hidden]`."""
        x = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]] + self.types.weight[0]
        x = self.norm(x)
        # half of the largest number and not infinity: a row of padding alone is then uniform, where it would be NaN
        bias = (attention_mask == 0).to(x.dtype)[:, None, None, :] * (torch.finfo(x.dtype).min / 2)
        for layer in self.layers:
            x = layer(x, bias)
        return x

    def pooled(self, hidden: torch.Tensor) -> torch.Tensor:
        """The first token's vector through the pooler. Shapes: `[rows, tokens, hidden]` to `[rows, hidden]`."""
        first: torch.Tensor = torch.tanh(self.pooler(hidden[:, 0]))
        return first

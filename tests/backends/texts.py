"""Small versions that take texts: a tokenizer of few words, and as small an encoder as one can be, as program and ONNX file."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from models.exporting import onnx_bytes, program_bytes
from models.text_embed.bert import Bert, BertShape
from models.text_embed.network import Sentences
from server.backends.base import LoadTask
from server.core.settings import ModelSettings
from server.core.versions import VersionKey

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "late", "train", "on", "time", "größe", "列車", "🚆")
SHAPE = BertShape(hidden=8, layers=2, heads=2, inner=16, vocabulary=len(WORDS), positions=64, pooler=False)
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "sentence_embedding"


def tokenizer(most: int | None = 24, *, left: bool = False, pads: bool = True) -> Tokenizer:
    """Words at spaces; [CLS] before and [SEP] behind. `most`: what its file says of truncation."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    if most is not None:
        made.enable_truncation(most)
    if pads:
        made.enable_padding(direction="left" if left else "right", length=24)
    return made


@cache
def network(seed: int = 3) -> Sentences:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made: Sentences = Sentences(Bert(SHAPE)).eval()
    # so that words and places count for much
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(3)
    return made


def examples(tokens: int = 8) -> tuple[Any, Any]:
    ones = torch.ones((2, tokens), dtype=torch.int64)
    return ones, ones


def free(tokens: bool = True, most: int = 64) -> Any:
    dims: dict[int, Any] = {0: torch.export.Dim("rows")}
    if tokens:
        dims[1] = torch.export.Dim("tokens", max=most)
    return dims, dims


@cache
def program(tokens: bool = True, most: int = 64) -> bytes:
    names = {"inputs": list(INPUTS), "outputs": [OUTPUT]}
    return program_bytes(network(), examples(), free(tokens, most), names, "texts")


@cache
def graph() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return onnx_bytes(network(), examples(), free(), INPUTS, [OUTPUT], "texts")


def put(folder: Path, *, onnx: bool = False, torch_program: bool = True, **tokens: Any) -> Path:
    """A version's files."""
    folder.mkdir(parents=True, exist_ok=True)
    if torch_program:
        (folder / "program.pt2").write_bytes(program())
    if onnx:
        (folder / "model.onnx").write_bytes(graph())
    tokenizer(**tokens).save(str(folder / "tokenizer.json"))
    return folder


def task(folder: Path, **settings: object) -> LoadTask:
    one_thread = {"torch": {"intra_op_threads": 1}, "onnx": {"intra_op_threads": 1}}
    return LoadTask(VersionKey("texts", 1), folder, ModelSettings.model_validate(one_thread | settings))

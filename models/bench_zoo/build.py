"""The recipe: networks with random weights as a repository that can be served as it is.

`python -m models.bench_zoo.build --out FOLDER` writes `FOLDER/<name>/1/program.pt2` (and `model.onnx`, where there is one) and
`FOLDER/<name>/model.toml` for each model of the zoo, or for those named with `--only`. With `--check` what was written is read
by torch again and must answer as the network does. Two builds with the same arguments write the same bytes.
"""

import argparse
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from models.bench_zoo.networks import PARAMETERS, count
from models.bench_zoo.zoo import DTYPES, SEED, ZOO, Entry, inputs, make
from models.exporting import onnx_bytes, program_bytes
from server.registry.durable import write_atomically

COMMAND = "python -m models.bench_zoo.build"
OPTIONAL = ("bert_large",)
"""Built only where they are named: 1.3 GB."""
_ROWS = 3


def contents(name: str, dtype: str, *, small: bool = False, seed: int = SEED) -> dict[str, bytes]:
    """The files of a version. Raises: ValueError for a network that has not the published number of parameters."""
    entry = ZOO[name]
    network = make(entry, dtype, small=small, seed=seed)
    published = PARAMETERS.get(name)
    if not small and published is not None and count(network) != published:
        raise ValueError(f"{name} has {count(network)} parameters, not {published}")
    given = inputs(entry, 2, small=small)
    free = tuple({0: torch.export.Dim("rows", max=entry.max_batch)} for _ in given)
    names = {"inputs": list(given), "outputs": [entry.output]}
    made = {"program.pt2": program_bytes(network, list(given.values()), free, names, name)}
    if entry.onnx and dtype == "fp32":
        made["model.onnx"] = onnx_bytes(network, list(given.values()), free, list(given), [entry.output], name)
    return made


def settings(entry: Entry, device: str) -> str:
    """The model's `model.toml`."""
    return f'backend = "torch"\nmax_batch = {entry.max_batch}\n\n[torch]\ndevice = "{device}"\n'


def difference(name: str, content: bytes, dtype: str, seed: int) -> float:
    """How far the answers of a program, as torch reads it, are from those of the network it was made from."""
    given = inputs(ZOO[name], _ROWS, seed=SEED + 1)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # about the reader's own internals
        program: Any = torch.export.load(io.BytesIO(content)).module()
        apart = program(*given.values()) - make(ZOO[name], dtype, seed=seed)(*given.values())
    return float(apart.abs().max())


def main(arguments: list[str]) -> int:
    """Build, and say what was built; with `--check`, how far it is from the network."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Build models for benchmarks, with random weights.")
    parser.add_argument("--out", type=Path, default=Path("build/bench_zoo"), help="repository (default: %(default)s)")
    parser.add_argument("--only", choices=sorted(ZOO), action="append", help="build this one; may be repeated")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="what they compute in (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for model.toml (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--check", action="store_true", help="compare what torch reads with the network")
    given = parser.parse_args(arguments)
    for name in given.only or [name for name in ZOO if name not in OPTIONAL]:
        made = contents(name, given.dtype, seed=given.seed)
        folder = given.out / name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in made.items():
            write_atomically(folder / file, content)
        write_atomically(folder.parent / "model.toml", settings(ZOO[name], given.device).encode())
        sizes = ", ".join(f"{file} {len(content) / 1e6:.1f} MB" for file, content in made.items())
        print(f"{name} {given.dtype}: {sizes}")
        if given.check:
            apart = difference(name, made["program.pt2"], given.dtype, given.seed)
            print(f"{name}: at most {apart:.1e} away from the network")
            if not apart <= (1e-4 if given.dtype == "fp32" else 5e-2):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

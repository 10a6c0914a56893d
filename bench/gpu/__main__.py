"""`python -m bench.gpu [--device cuda|fake] [--minutes M] [--results DIR]`: the matrix, as one JSON. See docs/GPU.md."""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.gpu.catalogue import FOLDER, catalogue
from bench.gpu.matrix import Matrix
from bench.native_client import executable
from bench.record import RESULTS

NAMES = {"fake": "fake_device", "cuda": "cuda_device"}


def main(arguments: list[str]) -> int:
    """The exit status is 1 where a row failed or was not run; what a ratio came to does not change it."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", choices=tuple(NAMES), default="cuda", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON goes")
    parser.add_argument("--catalogue", type=Path, metavar="FILE", help="models, instead of those of the device")
    parser.add_argument("--data-plane", choices=("native", "python"), default="native", help="default: %(default)s")
    chosen = parser.parse_args(arguments)
    executable()
    models = catalogue(chosen.catalogue or FOLDER / f"{chosen.device}.toml")
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(NAMES[chosen.device], models, chosen.minutes, chosen.results, Path(folder), chosen.data_plane)
        print(matrix.measure())
    return int(any(row["status"] != "measured" for row in matrix.rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

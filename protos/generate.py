"""Makes the Python code of protos/*.proto; with `--check`, only compares it with what is committed.

Floor 0, a script: the server never imports it. One thing differs from protoc's own output: the descriptors go to
`protos.pool.POOL` and not to the default pool (that file says why).
"""

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
OURS = "from protos.pool import POOL as _POOL"
REPLACED = {
    "from google.protobuf import descriptor_pool as _descriptor_pool": OURS,
    "_descriptor_pool.Default()": "_POOL",
}


def generate(root: Path, target: Path) -> dict[str, bytes]:
    """Compile every `root/protos/*.proto` into `target/protos`, and return the files by name.

    Raises: RuntimeError where protoc reports an error (it has written it to stderr), or where its output is no longer
    of the form that this script rewrites.
    """
    sources = sorted(path.relative_to(root).as_posix() for path in (root / "protos").glob("*.proto"))
    binaries = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"-I{root}",
        f"-I{files('grpc_tools') / '_proto'}",
        # named by path: the environment need not be activated
        f"--plugin=protoc-gen-mypy={binaries / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={binaries / 'protoc-gen-mypy_grpc'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed")
    with_service = {Path(source).stem for source in sources if "\nservice " in (root / source).read_text("utf-8")}
    made: dict[str, bytes] = {}
    for path in sorted((target / "protos").iterdir()):
        proto, _, kind = path.name.partition("_pb2")
        # a proto without a service yields gRPC files that say nothing
        if kind.startswith("_grpc") and proto not in with_service:
            continue
        text = path.read_text("utf-8")
        if kind == ".py":
            text = _with_own_pool(path.name, text)
        made[path.name] = text.encode()
    return made


def _with_own_pool(name: str, text: str) -> str:
    for old, new in REPLACED.items():
        if text.count(old) != 1:
            raise RuntimeError(f"{name}: expected exactly one '{old}' in protoc's output, found {text.count(old)}")
        text = text.replace(old, new)
    return text


def drift(made: dict[str, bytes], folder: Path) -> list[str]:
    """What differs between the files that were made and those in `folder`, one line each; empty where nothing does."""
    committed = {path.name: path.read_bytes() for path in folder.glob("*_pb2*.py*")}
    return [
        *(f"missing: {name}" for name in sorted(made.keys() - committed.keys())),
        *(f"made from no .proto file: {name}" for name in sorted(committed.keys() - made.keys())),
        *(f"out of date: {name}" for name in sorted(made.keys() & committed.keys()) if made[name] != committed[name]),
    ]


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write the files, or compare them; the exit status."""
    parser = argparse.ArgumentParser(prog="protos/generate.py", description="Make the Python code of protos/*.proto.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the committed code differs")
    check = parser.parse_args(arguments).check
    with tempfile.TemporaryDirectory() as target:
        made = generate(root, Path(target))
    folder = root / "protos"
    if not check:
        for name, content in made.items():
            (folder / name).write_bytes(content)
        return 0
    differences = drift(made, folder)
    if differences:
        sys.stderr.write(
            "the code in protos/ is not what its .proto files give:\n  "
            + "\n  ".join(differences)
            + "\nrun `make protos` with the tool versions of constraints.txt and commit the result\n"
        )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

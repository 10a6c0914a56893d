"""The committed code is what the .proto files give, and the check notices when it is not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protos import generate

ROOT = Path(__file__).parents[2]


def copy_of_tree(folder: Path) -> Path:
    shutil.copytree(ROOT / "protos", folder / "protos", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_committed_code_is_up_to_date() -> None:
    # a process of its own, as `make lint` runs it: the one that runs the tests has gRPC threads, which complain of forks
    check = [sys.executable, str(ROOT / "protos" / "generate.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_check_names_every_kind_of_drift_and_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = copy_of_tree(tmp_path)
    proto = root / "protos/grpc_service.proto"
    proto.write_text(proto.read_text().replace("string error_message = 1;", "string error_message = 3;"))
    (root / "protos/model_config_pb2.pyi").unlink()
    (root / "protos/gone_pb2.py").write_text("")
    before = {path.name: path.read_bytes() for path in (root / "protos").iterdir()}

    assert generate.main(["--check"], root) == 1

    text = capfd.readouterr().err
    assert "missing: model_config_pb2.pyi" in text
    assert "made from no .proto file: gone_pb2.py" in text
    assert "out of date: grpc_service_pb2.py\n" in text
    assert "run `make protos`" in text
    assert {path.name: path.read_bytes() for path in (root / "protos").iterdir()} == before


def test_writing_repairs_drift(tmp_path: Path) -> None:
    root = copy_of_tree(tmp_path)
    (root / "protos/grpc_service_pb2.py").write_text("")
    assert generate.main([], root) == 0
    assert generate.main(["--check"], root) == 0


def test_code_in_the_default_pool_is_drift(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = copy_of_tree(tmp_path)
    stub = root / "protos/model_config_pb2.py"
    stub.write_text(stub.read_text().replace("= _POOL.Add", "= _descriptor_pool.Default().Add"))
    assert generate.main(["--check"], root) == 1
    assert "out of date: model_config_pb2.py" in capfd.readouterr().err


def test_a_broken_proto_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = copy_of_tree(tmp_path)
    (root / "protos/model_config.proto").write_text('syntax = "proto3"; message {')
    with pytest.raises(RuntimeError, match="protoc failed"):
        generate.main([], root)
    assert "model_config.proto" in capfd.readouterr().err


def test_protoc_output_of_another_form_is_refused() -> None:
    with pytest.raises(RuntimeError, match="expected exactly one"):
        generate._with_own_pool("x_pb2.py", "DESCRIPTOR = pool.Default()")

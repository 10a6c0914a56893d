"""A network as ONNX file and as torch program behind one server each: the same requests, the same answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from models.flight_delay.build import build
from models.flight_delay.data import load
from models.flight_delay.examples import as_rows
from models.flight_delay.registration import register_build
from models.flight_delay.training import Settings
from server.registry.manifest import ManifestFields
from tests.server.serving import Serving

ROWS = 200


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("flights")
    built = build(home / "built", Settings(epochs=1), limit_rows=3000)
    register_build(home / "models", built.files, ManifestFields.model_validate(built.facts), "champion")
    return home / "models"


def ask(repository: Path, home: Path, june: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    server = Serving(repository, home)
    try:
        with triton.InferenceServerClient(server.grpc_address) as client:
            config = client.get_model_config("flight_delay", as_json=True)["config"]
            answers = []
            for first in range(0, ROWS, 40):
                inputs = []
                for name, array in june.items():
                    datatype = {"O": "BYTES", "i": "INT32", "f": "FP32"}[array.dtype.kind]
                    inputs.append(triton.InferInput(name, [40, 1], datatype))
                    inputs[-1].set_data_from_numpy(np.ascontiguousarray(array[first : first + 40]))
                answers.append(client.infer("flight_delay", inputs).as_numpy("probability"))
            return config, np.concatenate(answers)
    finally:
        server.stop()


def test_one_line_of_settings_changes_what_executes_and_not_what_is_answered(repository: Path, tmp_path: Path) -> None:
    june = as_rows(load().months(6).take(np.arange(ROWS)).inputs)
    settings = repository / "flight_delay" / "model.toml"
    text = settings.read_text()
    assert 'backend = "onnx"' in text
    (tmp_path / "onnx").mkdir()
    (tmp_path / "torch").mkdir()
    config, one = ask(repository, tmp_path / "onnx", june)
    assert (config["backend"], config["platform"]) == ("onnxruntime", "onnxruntime_onnx")
    settings.write_text(text.replace('backend = "onnx"', 'backend = "torch"'))
    config, other = ask(repository, tmp_path / "torch", june)
    assert (config["backend"], config["platform"]) == ("pytorch", "pytorch_libtorch")
    assert config["default_model_filename"] == "program.pt2"
    assert one.shape == (ROWS, 1)
    assert len(np.unique(one)) > 50
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)

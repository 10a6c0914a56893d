import io
import zipfile

import numpy as np
import torch

from models.flight_delay import export, program
from models.flight_delay.build import AGREEMENT, BuildResult, answers
from models.flight_delay.data import Flights
from models.flight_delay.examples import as_rows
from models.flight_delay.model import fit
from models.flight_delay.registration import PROGRAM_FILE
from models.flight_delay.training import Settings, train
from server.backends import onnx_session, torch_program
from server.backends.base import LoadTask
from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.versions import VersionKey
from server.lifecycle.loader import run_golden

SETTINGS = ModelSettings.model_validate({"max_batch": 256})


def test_one_network_gives_one_program_that_torch_reads_too(flights: Flights) -> None:
    rows = flights.months(2).take(np.arange(2000))
    fitted = fit(rows)
    trained = train(rows, rows, fitted, Settings(epochs=1))
    content = program.to_program(trained.model, fitted)
    assert content == program.to_program(trained.model, fitted)
    few = flights.months(6).take(np.arange(500))
    difference = program.predict(content, few, fitted) - answers(export.to_onnx(trained.model, fitted), few)
    assert np.abs(difference).max() < 1e-6


def test_nothing_of_the_exporting_machine_is_left_in_the_program(built: BuildResult) -> None:
    content = built.model_file.with_name(PROGRAM_FILE).read_bytes()
    for trace in (b".py", b"site-packages", b"stack_trace", b"graph_id", b"/home", b"/root"):
        assert trace not in content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert torch.export.load(io.BytesIO(content)).graph_signature.user_outputs


def test_both_backends_answer_alike_on_all_of_june(built: BuildResult, flights: Flights) -> None:
    """The same request fits both files, strings included; measured: at most 2.4e-7 apart."""
    task = LoadTask(VersionKey("flight_delay", 1), built.model_file.parent, SETTINGS)
    backends = [module.open_backend(task) for module in (onnx_session, torch_program)]
    one, other = (backend.signature for backend in backends)
    assert one == other == Signature("flight_delay", one.inputs, export.OUTPUTS, 256)
    inputs = as_rows(flights.months(6).inputs)
    served, again = (run_golden(backend, inputs)["probability"] for backend in backends)
    assert len(served) == 27_075
    difference = float(np.abs(served.astype(np.float64) - again.astype(np.float64)).max())
    assert difference <= AGREEMENT
    assert built.facts["metrics"]["program_onnx_max_difference"] <= AGREEMENT
    golden = run_golden(backends[1], built.golden_inputs)["probability"]
    np.testing.assert_allclose(golden.astype(np.float32), built.golden_outputs["probability"].astype(np.float32), 1e-5, 1e-6)

from server.core.settings import ModelSettings
from server.lifecycle.estimate import BATCH_BYTES, FILES_PERCENT, estimate
from tests.core.test_measured import measured

SIZE = 1001


def test_what_was_measured_is_the_best_estimate() -> None:
    best = estimate("onnx", ModelSettings(instances=3), SIZE, measured())
    assert (best.nbytes, best.source) == (1000, "measured on NVIDIA H200 on 2026-11-21")


def test_files_and_an_allowance_stand_in() -> None:
    expected = 1252 + BATCH_BYTES
    assert FILES_PERCENT == 125
    for known in (None, measured(memory_bytes=None)):
        guess = estimate("onnx", ModelSettings(), SIZE, known)
        assert guess.nbytes == expected
        assert guess.source == f"estimated: 1001 bytes of files, times 1.25, and {BATCH_BYTES} bytes for a batch"
    twice = estimate("torch", ModelSettings(instances=2), SIZE, None)
    assert twice.nbytes == 2 * expected
    assert twice.source.endswith("for a batch, times 2 instances")


def test_a_fake_version_holds_what_its_settings_say() -> None:
    fake = {"weights_bytes": 1000, "row_bytes": 10}
    for max_batch, nbytes in ((None, 1640), (0, 1010), (4, 1040)):
        settings = ModelSettings.model_validate({"fake": fake, "max_batch": max_batch, "instances": 2})
        assert estimate("fake", settings, SIZE, None).nbytes == 2 * nbytes

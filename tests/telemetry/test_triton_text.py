"""The `nv_*` lines, to the letter: readers of Triton's metrics match them as text."""

import re

import pytest

from server.core.versions import VersionKey
from server.telemetry.readings import DeviceReading, VersionReading
from server.telemetry.recorder import VersionRecorder
from server.telemetry.triton_text import triton_text

_UUIDS = ("GPU-00000000-0000-0000-0000-000000000000", "GPU-00000000-0000-0000-0000-000000000001")


def test_a_version_is_written_as_triton_writes_it() -> None:
    recorder = VersionRecorder(VersionKey("m", 1), lambda: 0)
    recorder.refused("cancelled", 2**53 + 1)
    text = triton_text([VersionReading(recorder.snapshot(), None, None)], ())
    assert "\n# TYPE nv_inference_request_failure counter\n" in text
    assert '\nnv_inference_request_failure{model="m",reason="CANCELED",version="1"} 9007199254740993\n' in text
    assert '\nnv_inference_count{model="m",version="1"} 0\n' in text
    assert "pending" not in text, "no queue, no gauge of it"


def test_nothing_measured_is_nothing_written() -> None:
    assert triton_text((), ()) == ""


def test_what_a_device_cannot_tell_is_left_out() -> None:
    text = triton_text((), [DeviceReading(_UUIDS[0], memory_used_bytes=1), DeviceReading(_UUIDS[1], utilization_ratio=0.0)])
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        f'nv_gpu_utilization{{gpu_uuid="{_UUIDS[1]}"}} 0.000000',
        f'nv_gpu_memory_used_bytes{{gpu_uuid="{_UUIDS[0]}"}} 1',
    ]


@pytest.mark.parametrize("number", [1e-7, 1e17, 123_456_789.125, 0.1])
def test_no_number_is_written_with_an_exponent(number: float) -> None:
    line = triton_text((), [DeviceReading(_UUIDS[0], energy_joules=number)]).splitlines()[-1]
    written = line.rpartition(" ")[2]
    assert re.fullmatch(r"\d+\.\d{6}", written)
    assert float(written) == pytest.approx(number, abs=1e-6)

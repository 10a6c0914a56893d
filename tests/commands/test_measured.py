import tomllib
from pathlib import Path
from typing import Any

import pytest

from server.core.measured import settings_digest
from server.core.settings import ModelSettings
from server.registry.measured_files import MeasuredFiles, files_digest
from server.registry.source import LocalDirectory
from tests.commands.shell import REGISTER, Shell
from tests.registry.test_measured_files import document


def measure(folder: Path | None = None, **other: Any) -> None:
    """Keep a document about `demo:1` as it is."""
    found = LocalDirectory(Path("models"), 0.0).scan()["demo"].versions[1]
    fields = {
        "files": files_digest(found),
        "settings": settings_digest("onnx", ModelSettings()),
        "memory_bytes": 3 * 2**20,
        "costs_ns": {8: 170_500, 1: 100_000},
        "libraries": {"python": "3", "onnxruntime": "1.0"},
    }
    assert MeasuredFiles(folder).write(found, document(found, **fields | other))


def test_what_was_measured_is_printed_for_people(podium: Shell) -> None:
    podium.output(*REGISTER)
    measure()
    measure(device_kind="NVIDIA T4", memory_bytes=None, files="0" * 64, settings="0" * 64, instances=3)
    measure(device_kind="a CPU", costs_ns={}, files="0" * 64, libraries={})
    first, second, cpu = podium.output("measured", "demo").split("\n\n")
    assert first.splitlines() == [
        "version    demo:1",
        "measured   2026-11-21 00:00 UTC on NVIDIA H200 by onnxruntime_onnx",
        "libraries  onnxruntime 1.0, python 3",
        "memory     3.0 MiB",
        "about      the files and settings that are there now",
        "  ROWS            US        ROWS/S",
        "     1         100.0         10000",
        "     8         170.5         46921",
    ]
    assert "version    demo:1, 3 instances" in second
    assert "memory     not told by the device" in second
    assert "about      other files and settings than there are now" in second
    assert "libraries  -" in cpu
    assert "about      other files than there are now" in cpu
    assert cpu.endswith("(no times: no sample ran)\n")


def test_other_settings_are_noticed(podium: Shell) -> None:
    podium.output(*REGISTER)
    measure()
    Path("models/demo/model.toml").write_text("max_batch = 3\n")
    assert "about      other settings than there are now" in podium.output("measured", "demo:1")
    Path("models/demo/model.toml").write_text("max_batch = 'x'\n")
    assert "about      other settings than there are now" in podium.output("measured", "demo:1")


def test_times_are_printed_for_the_fake_backend(podium: Shell) -> None:
    podium.output(*REGISTER)
    measure()
    table = ModelSettings.model_validate(tomllib.loads(podium.output("measured", "demo", "--toml"))).fake.table_us
    assert table == {1: 100.0, 8: 170.5}
    measure(device_kind="NVIDIA T4", costs_ns={1: 5000})
    refusal = podium.refusal("measured", "demo", "--toml")
    assert refusal == "there are several; say one of them with --device-kind: NVIDIA H200, NVIDIA T4"
    chosen = podium.output("measured", "demo", "--toml", "--device-kind", "NVIDIA T4")
    assert tomllib.loads(chosen) == {"fake": {"table_us": {"1": 5.0}}}


def test_what_is_not_there_is_said(podium: Shell, tmp_path: Path) -> None:
    podium.output(*REGISTER)
    assert "nothing was measured of demo:1 yet" in podium.refusal("measured", "demo")
    assert "no version 2" in podium.refusal("measured", "demo:2")
    measure(tmp_path / "kept", costs_ns={})
    kept = ("--measured-dir", str(tmp_path / "kept"))
    assert "memory     3.0 MiB" in podium.output("measured", "demo", *kept)
    assert podium.refusal("measured", "demo", *kept, "--device-kind", "T4") == (
        "demo:1 was not measured on 'T4'; it was on: NVIDIA H200"
    )
    assert podium.refusal("measured", "demo", *kept, "--toml").startswith("no times were measured")


@pytest.mark.parametrize("name", ["models", "lineage"])
def test_other_verbs_do_not_know_documents(podium: Shell, name: str) -> None:
    podium.output(*REGISTER)
    arguments = () if name == "models" else ("demo",)
    before = podium.output(name, *arguments)
    measure()
    assert podium.output(name, *arguments) == before

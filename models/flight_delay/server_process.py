"""A Podium server of one's own, as a process, for as long as a `with` block lasts.

Started as a user would start it, on ports that were free a moment ago. It never outlives the block: it is asked to leave,
and killed where it does not.
"""

import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from models.flight_delay.facts import ROOT

_READY_S = 60.0
_STOP_S = 60.0
_POLL_S = 0.05
_LOG_LINES = 15
# straight to the loopback address, whatever proxy the environment names
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerFailed(RuntimeError):
    """The server did not become ready; the text ends with the last lines of its log."""


class ServerProcess:
    """A context manager: ready when entered, gone when left; `exit_status` is set then.

    Raises: ServerFailed on entering. Units: `ready_s` seconds from start to ready.
    """

    def __init__(self, repository: Path, model: str, config: Path | None = None) -> None:
        """`config`: settings beside those of the command line."""
        grpc_port, http_port = _free_ports()
        self.grpc_address, self.http_address = f"127.0.0.1:{grpc_port}", f"127.0.0.1:{http_port}"
        self.exit_status: int | None = None
        self.ready_s = 0.0
        self._command = [
            *(sys.executable, "-m", "server", "serve", "--repository", str(repository.resolve())),
            *("--grpc-address", self.grpc_address, "--http-address", self.http_address),
            *("--control-mode", "explicit", "--load-model", model, "--drain-delay-s", "0"),
            *(() if config is None else ("--config", str(config))),
        ]

    @property
    def metrics_url(self) -> str:
        """Where the metrics are while the server runs."""
        return f"http://{self.http_address}/metrics"

    def metrics(self) -> str:
        """The metrics page as it is now. Raises: OSError."""
        with _DIRECT.open(self.metrics_url, timeout=_READY_S) as page:
            return str(page.read(), "utf-8")

    def __enter__(self) -> Self:
        began = time.monotonic()
        # a file and not a pipe: nobody reads while the server runs, and a full pipe would stop it
        self._log = tempfile.NamedTemporaryFile(prefix="podium-log-")
        self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=self._log, stderr=self._log)
        try:
            while not self._is_ready():
                if self._process.poll() is not None:
                    raise ServerFailed(f"the server left with status {self._process.returncode}\n{self.log_tail()}")
                if time.monotonic() - began > _READY_S:
                    raise ServerFailed(f"the server was not ready after {_READY_S:.0f} s\n{self.log_tail()}")
                time.sleep(_POLL_S)
        except BaseException:
            self._stop()
            self._log.close()
            raise
        self.ready_s = time.monotonic() - began
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.exit_status = self._stop()
        finally:
            self._log.close()

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        return "\n".join(Path(self._log.name).read_text("utf-8", "replace").splitlines()[-_LOG_LINES:])

    def _is_ready(self) -> bool:
        try:
            with _DIRECT.open(f"http://{self.http_address}/readyz", timeout=1.0) as page:
                return bool(page.status == 200)
        except OSError:
            return False

    def _stop(self) -> int:
        """Ask the server to leave and wait for it; its exit status, negative where it had to be killed."""
        try:
            self._process.terminate()
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        except BaseException:  # a second Ctrl-C does not wait, and leaves nothing behind either
            self._process.kill()
            self._process.wait()
            raise


def _free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on; both are held until both are known, so that they differ."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]

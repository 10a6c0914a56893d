"""Servers under test as processes of their own, pinned to one core; the load goes on the other. Loopback only."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil

SERVER_CORE, CLIENT_CORE = 0, 1
_START_S = 60.0


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], log: Path, cores: Collection[int] = (SERVER_CORE,)) -> Iterator[psutil.Process]:
    """A process pinned to the server's cores; ended at exit, killed if it does not listen."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=output,
            stderr=output,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),  # noqa: PLW1509 - no threads here yet,
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def podium(
    repository: Path, folder: Path, *flags: str, cores: Collection[int] = (SERVER_CORE,), start_s: float = _START_S
) -> Iterator[tuple[str, str, psutil.Process]]:
    """A Podium server: its gRPC address, its HTTP address, its process. Returns when it is ready."""
    address, http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = ["server", "serve", "--repository", str(repository), "--grpc-address", address, "--http-address", http]
    command += ["--drain-delay-s", "0", "--log-level", "warning", *flags]
    with running(command, folder / "podium.log", cores) as process:
        end = time.monotonic() + start_s
        while True:
            try:
                with urllib.request.urlopen(f"http://{http}/readyz", timeout=1):
                    break
            except OSError:
                if time.monotonic() > end or not alive(process):
                    raise RuntimeError((folder / "podium.log").read_text()) from None
                time.sleep(0.1)
        yield address, http, process


@contextmanager
def reference(model: Path, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The bare servicer: its address and process."""
    address = f"127.0.0.1:{free_port()}"
    with running(["bench.reference", str(model), address], folder / "reference.log") as process:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=_START_S)
        yield address, process


def alive(process: psutil.Process) -> bool:
    """Whether it runs: a child that has ended and was not waited for yet still has its number."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def cpu_s(process: psutil.Process) -> float:
    """User and system CPU seconds a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)

"""What the command says of a server: an exit status that a health check can use, and one line."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from server.__main__ import main as podium
from server.health_command import DEFAULT_URL, main

ROOT = Path(__file__).parents[1]


class Answering(BaseHTTPRequestHandler):
    """200 below /readyz, 503 below /broken, and elsewhere no answer of HTTP at all."""

    def do_GET(self) -> None:
        if self.path == "/rubbish":
            self.wfile.write(b"\x00\x01\x02\r\n\r\n")
            return
        status = 200 if self.path == "/readyz" else 503
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b'{"ready": %s}' % (b"true" if status == 200 else b"false"))

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def answering() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_it_is_content_with_200_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with answering() as address:
        assert podium(["health", f"{address}/readyz"]) == 0
        assert capsys.readouterr().out == '200 {"ready": true}\n'
        assert main([f"{address}/broken"]) == 1
        assert capsys.readouterr().out == '503 {"ready": false}\n'
        assert main([f"{address}/rubbish", "--timeout-s", "5"]) == 1
        assert capsys.readouterr().err.startswith(f"podium health: {address}/rubbish: ")
    assert main([f"{address}/readyz"]) == 1
    assert "refused" in capsys.readouterr().err
    assert main(["no address"]) == 2
    assert capsys.readouterr().err == "podium health: unknown url type: 'no address'\n"


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering() as address:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        assert main([f"{address}/readyz"]) == 0


def test_a_server_that_does_not_answer_is_not_waited_for() -> None:
    """A socket that takes connections and says nothing."""
    with HTTPServer(("127.0.0.1", 0), Answering) as silent:
        assert main([f"http://127.0.0.1:{silent.server_port}/readyz", "--timeout-s", "0.1"]) == 1


def test_by_itself_it_imports_nothing_of_the_server() -> None:
    """It runs every few seconds beside a server: what a start of the whole command costs would be felt."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['health', 'http://127.0.0.1:1/readyz']\n"
        "try:\n"
        "    runpy.run_module('server.health_command', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    heavy = ('server', 'grpc', 'numpy', 'pydantic')\n"
        "    print(end.code, sorted(name for name in sys.modules if name.startswith(heavy)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "1 ['server']\n"
    assert DEFAULT_URL == "http://127.0.0.1:8002/readyz"

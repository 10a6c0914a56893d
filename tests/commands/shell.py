"""Commands run in this process, as `podium` would run them."""

from argparse import ArgumentParser

import pytest

from server.commands import add_commands

REGISTER = ("register", "--name", "demo", "--model", "trained.onnx")


class Shell:
    """Runs commands in a folder of their own, as `podium` would."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        parser = ArgumentParser(prog="podium")
        add_commands(parser.add_subparsers(required=True))
        parsed = parser.parse_args(arguments)
        code = parsed.run(parsed)
        captured = self._capture.readouterr()
        return code, captured.out, captured.err

    def output(self, *arguments: str) -> str:
        code, out, err = self(*arguments)
        assert (code, err) == (0, "")
        return out

    def refusal(self, *arguments: str) -> str:
        code, out, err = self(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("podium: ")
        assert err.count("\n") == 1
        return err.strip().removeprefix("podium: ")

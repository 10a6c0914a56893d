"""The `podium` command: `serve` runs a server, the other verbs look after the registry."""

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from server.commands import add_commands
from server.consumers_command import add_consumers_command
from server.core.settings import ServerSettings
from server.health_command import add_health_command
from server.process import serve


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run one verb. Returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="podium", description="Serve models over gRPC, and look after their registry.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_serve(verbs.add_parser("serve", help="run a server"))
    add_commands(verbs)
    add_consumers_command(verbs)
    add_health_command(verbs)
    chosen = parser.parse_args(arguments)
    status: int = chosen.run(chosen)
    return status


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="TOML file with any of the settings of docs/CONFIG.md; flags override it")
    parser.add_argument("--repository", help="directory of models")
    parser.add_argument("--grpc-address", help="HOST:PORT or unix:PATH (default 127.0.0.1:8001)")
    parser.add_argument("--http-address", help="HOST:PORT of /metrics, /healthz, /readyz (default 127.0.0.1:8002)")
    parser.add_argument("--data-plane", choices=("auto", "native", "python"))
    parser.add_argument("--control-mode", choices=("poll", "explicit"), help="who decides what is loaded")
    parser.add_argument(
        "--load-model",
        dest="load_models",
        action="append",
        help="in explicit mode: load this at start; * for all; may be repeated",
    )
    parser.add_argument(
        "--allow-client-shm",
        choices=("true", "false"),
        nargs="?",
        const="true",
        help="whether callers may register files of /dev/shm for inputs and outputs (default false)",
    )
    parser.add_argument("--drain-delay-s", type=float, help="seconds to go on serving after SIGTERM")
    parser.add_argument("--drain-grace-s", type=float, help="seconds admitted requests then have to finish")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.set_defaults(run=_serve)


def _serve(chosen: argparse.Namespace) -> int:
    values: dict[str, Any] = {}
    try:
        if chosen.config is not None:
            values = tomllib.loads(chosen.config.read_text("utf-8"))
        flags = {
            name: value for name, value in vars(chosen).items() if name in ServerSettings.model_fields and value is not None
        }
        settings = ServerSettings.model_validate(values | flags)
    except ValidationError as error:
        for problem in error.errors():
            sys.stderr.write(f"podium serve: {'.'.join(map(str, problem['loc']))}: {problem['msg']}\n")
        return 2
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        sys.stderr.write(f"podium serve: {chosen.config}: {error}\n")
        return 2
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())

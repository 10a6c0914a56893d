"""`podium monitor`: counts and judges what all replicas sample, in a process of its own."""

import asyncio
import importlib
import logging
import sys
import tomllib
from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from feature_client.errors import StoreError
from server.core.errors import PodiumError
from server.core.settings import ServerSettings
from server.held_folder import held
from server.telemetry import logs

_FLAGS = ("repository", "grpc_address", "http_address", "log_level")


def add_monitor(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add the verb; its parser sets `run`, which takes the parsed arguments and returns an exit code."""
    parser = subparsers.add_parser("monitor", help="count and judge what all replicas sample, from the stream they share")
    parser.add_argument("--config", type=Path, required=True, help="the servers' TOML file; of it: repository, [monitoring], …")
    parser.add_argument("--repository", help="directory of models")
    # the file has the servers' own addresses
    parser.add_argument("--grpc-address", default="127.0.0.1:8011", help="HOST:PORT or unix:PATH (default: %(default)s)")
    parser.add_argument("--http-address", default="127.0.0.1:8012", help="HOST:PORT of /metrics (default: %(default)s)")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.set_defaults(run=_run)


def _run(chosen: Namespace) -> int:
    try:
        values: dict[str, Any] = tomllib.loads(chosen.config.read_text("utf-8"))
        flags = {name: getattr(chosen, name) for name in _FLAGS if getattr(chosen, name) is not None}
        settings = ServerSettings.model_validate(values | flags)
    except ValidationError as error:
        for problem in error.errors():
            print(f"podium monitor: {'.'.join(map(str, problem['loc']))}: {problem['msg']}", file=sys.stderr)
        return 2
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        print(f"podium monitor: {chosen.config}: {error}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level)
    try:
        with held(Path(settings.monitoring.dir) if settings.monitoring.dir else None):
            return 0 if asyncio.run(_monitor(settings)) else 1
    except (PodiumError, StoreError) as error:
        print(f"podium monitor: {error}", file=sys.stderr)
        return 1
    except (OSError, RuntimeError, ValueError) as error:
        logging.getLogger("podium.monitoring").error("cannot monitor", extra={"reason": str(error)})
        return 1


async def _monitor(settings: ServerSettings) -> bool:
    # by name: other verbs do not pay for a client of Redis
    made: Any = importlib.import_module("server.monitor_process").MonitorProcess(settings)
    ended: bool = await made.run()
    return ended

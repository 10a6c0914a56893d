"""`podium health [URL]`: whether a server wants traffic, as an exit status; for health checks where there is no curl.

Floor 7, and alone: `python -m server.health_command` imports nothing of the server, so that asking every few seconds costs a
machine that serves as little as it can.
"""

import argparse
import sys
import urllib.error
import urllib.request
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Sequence
from http.client import HTTPException

DEFAULT_URL = "http://127.0.0.1:8002/readyz"
"""At the side port's default address. Not `/healthz`: a server that has lost its device still answers, and cannot serve."""

_ANSWER_S = 5.0
_SAID_BYTES = 2000


def add_health_command(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add the verb; its parser sets `run`, which takes the parsed arguments and returns an exit code."""
    _take_arguments(subparsers.add_parser("health", help="ask a server whether it wants traffic"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The verb by itself. The exit status: 0 for an answer of 200, 1 for any other or none, 2 for wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__)
    _take_arguments(parser)
    return _run(parser.parse_args(arguments))


def _take_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", nargs="?", default=DEFAULT_URL, help="what to ask (default: %(default)s)")
    parser.add_argument(
        "--timeout-s", type=float, default=_ANSWER_S, help="seconds to wait for an answer (default: %(default)s)"
    )
    parser.set_defaults(run=_run)


def _run(chosen: Namespace) -> int:
    # the server is this machine's: a proxy that the environment names is not asked
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(chosen.url, timeout=chosen.timeout_s) as response:
            status, said = response.status, response.read(_SAID_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            status, said = error.code, error.read(_SAID_BYTES)
    except ValueError as error:
        sys.stderr.write(f"podium health: {error}\n")
        return 2
    except (OSError, HTTPException) as error:
        sys.stderr.write(f"podium health: {chosen.url}: {error}\n")
        return 1
    sys.stdout.write(f"{status} {said.decode('utf-8', 'replace').strip()}\n")
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())

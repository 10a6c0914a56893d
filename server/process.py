"""A serving process, from its settings to its exit status. Roof, above `app`."""

import asyncio
import logging
import os
import sys

from server.app import Server
from server.core.errors import PodiumError
from server.core.settings import ServerSettings
from server.monitored import Monitored
from server.optional import choose_plane, open_features, open_trace_sink
from server.restart import Restart, origin
from server.telemetry import logs
from server.telemetry.tracer import Tracer
from server.transport.http import split_address

_log = logging.getLogger("podium")


def serve(settings: ServerSettings) -> int:
    """Run a server until it is told to leave. The exit status: 0 after a drain, 1 when it could not start, 2 for settings
    that can never work, `restart.TOO_MANY` where devices are lost again and again."""
    restart = Restart(settings, origin())
    log = logs.configure(settings.log_level)
    restart.tell()
    try:
        split_address(settings.http_address)
    except ValueError as error:
        sys.stderr.write(f"podium serve: http_address: {error}\n")
        return 2
    try:
        kind, why = choose_plane(settings.data_plane)
    except PodiumError as error:
        sys.stderr.write(f"podium serve: data_plane: {error}\n")
        return 1
    try:
        tracer = Tracer(settings.trace, open_trace_sink(settings.trace))
    except PodiumError as error:
        sys.stderr.write(f"podium serve: trace: {error}\n")
        return 1
    try:
        features = open_features(settings.features)
    except PodiumError as error:
        sys.stderr.write(f"podium serve: features: {error}\n")
        return 1

    try:
        monitored = Monitored(settings.monitoring)
    except (OSError, PodiumError) as error:
        sys.stderr.write(f"podium serve: monitoring: {error}\n")
        features.close()
        return 1

    _log.info("data plane", extra={"plane": kind, "why": why})

    opened: list[Server] = []

    async def main() -> bool:
        opened.append(Server(settings, log, tracer, features, monitored, kind, restart))
        return await opened[0].run()

    try:
        ended = asyncio.run(main())
    except (OSError, RuntimeError) as error:
        _log.error("cannot serve", extra={"reason": str(error)})
        if not (opened and opened[0].lost):
            return 1
        ended = False
    finally:
        # engines have ended, or are inside native code and will not come back: nobody reads features any more, or samples
        features.close()
        monitored.close()
    if opened[0].lost:
        restart.begin(opened[0].lost)
    if not ended:
        # a thread is inside native code; the interpreter's own end would take the libraries away under it, and abort
        logging.shutdown()
        os._exit(0)
    return 0

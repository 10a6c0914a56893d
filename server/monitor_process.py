"""`podium monitor`: a process that counts and judges what all replicas sample. Roof: concrete classes meet here.

A thread reads the stream and owns everything that is counted; the event loop answers calls and scrapes. Only one process at a
time may have the folder in which it remembers.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from protos.monitoring_pb2_grpc import add_MonitoringServiceServicer_to_server
from server.core.errors import Unsupported
from server.core.settings import ServerSettings
from server.lifecycle.published import Published
from server.monitored_versions import MonitoredVersions
from server.monitoring.reading import MonitoringReading, SamplingReading
from server.monitoring.redis_sink import RedisOutcomes, RedisWriter
from server.monitoring.redis_source import RedisSource
from server.monitoring.stream_judging import StreamJudging
from server.monitoring.verdict import QualityReading, WindowVerdict
from server.retrain import Retrain, objectives
from server.service.outcomes import Outcomes as OutcomeCalls
from server.telemetry.monitoring_families import MonitoringFamilies
from server.transport.access import Access
from server.transport.drift_report import report_of
from server.transport.http import start_http
from server.transport.listen import GrpcioDoor
from server.transport.malformed import Registrar
from server.transport.monitoring import MonitoringCalls

_WAIT_S = 1.0
"""Windows close about so late where no rows come."""
_LOOK_ENTRIES = 256
_GRACE_S = 5.0
_log = logging.getLogger("podium.monitoring")


class MonitorProcess:
    """Ownership: the event loop that runs `run`. Raises: Unsupported, StoreError for settings that cannot work; OSError."""

    def __init__(self, settings: ServerSettings) -> None:
        monitoring = settings.monitoring
        if monitoring.sink != "redis":
            raise Unsupported('monitoring.sink is not "redis": there is no stream, and servers judge by themselves')
        self._settings = settings
        versions = MonitoredVersions(Path(settings.repository), settings.settle_s)
        folder = Path(monitoring.dir) if monitoring.dir else None
        connect = partial(RedisSource, monitoring.redis, monitoring.stream)
        self._judging = StreamJudging(connect, versions.find, folder, self._act)
        self._retrain = Retrain(monitoring)
        self._forwarded = RedisOutcomes(RedisWriter(monitoring.redis, monitoring.stream, monitoring.stream_rows))
        self._families = MonitoringFamilies()
        self._leaving = asyncio.Event()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None

    async def run(self) -> bool:
        """Monitor until SIGTERM or SIGINT, and keep everything at the end. False where it ended for another reason.

        Raises: OSError, RuntimeError where an address cannot be bound.
        """
        settings, loop = self._settings, asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leaving.set)
        calls = MonitoringCalls(self._outcome_calls(), lambda *asked: report_of(self.reading(), *asked))
        http = await start_http(settings.http_address, self._page, self._problems)
        reading = threading.Thread(target=self._read, args=(loop,), name="monitoring-stream", daemon=True)
        try:
            door = GrpcioDoor(settings)
            registrar: Any = Registrar(door, Access(settings.access).wrap)
            add_MonitoringServiceServicer_to_server(calls, registrar)
            address = door.bind(settings.grpc_address)
            await door.start()
            reading.start()
            _log.info("monitoring", extra={"grpc": address, "http": settings.http_address})
            await self._leaving.wait()
            calls.close()
            await door.stop(_GRACE_S)
        finally:
            self._stopping.set()
            if reading.ident is not None:
                await asyncio.to_thread(reading.join)
            await asyncio.to_thread(self._forwarded.close)
            await asyncio.to_thread(self._retrain.close)
            await http.cleanup()
        return self._failure is None

    def reading(self) -> MonitoringReading:
        """What there is to tell. Any thread."""
        judging = self._judging
        qualities = {(each.key, each.arm): each for each in judging.outcomes.readings()}
        versions = tuple(replace(each, quality=qualities.get((each.key, each.arm))) for each in judging.monitors.versions())
        unknown = sum(judging.monitors.unknown_rows().values())
        dropped = {**judging.dropped(), ("stream", "unknown_version"): unknown}
        sampling = SamplingReading({}, {}, dropped, {"stream": judging.read_rows - unknown}, {})
        return MonitoringReading(versions, sampling, judging.lag_s(), self._retrain.events())

    def _outcome_calls(self) -> OutcomeCalls:
        """Outcomes go through the stream, also those that are reported here: one order of everything, and nothing that was
        accepted is lost with this process.
        """
        nothing = Published({}, {}, {}, frozenset(), {}, {})
        return OutcomeCalls(lambda: nothing, self._judging.outcomes, lambda outcome: self._forwarded.send([outcome]))

    def _act(self, verdicts: Sequence[WindowVerdict], qualities: Sequence[QualityReading], now_us: int) -> None:
        self._retrain.follow({key: each.monitoring for key, each in self._judging.settings().items()})
        self._retrain.consider(verdicts, qualities, now_us)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        judging, entries = self._judging, 0
        try:
            while not self._stopping.is_set():
                met = judging.step(_WAIT_S)
                entries += met
                if not met or entries >= _LOOK_ENTRIES:
                    entries = 0
                    judging.look()
                if not met and judging.is_silent:
                    self._stopping.wait(_WAIT_S)
            judging.save()
        except Exception as error:  # noqa: BLE001 - a process that goes on without this thread would only seem to monitor
            _log.exception("monitoring failed")
            self._failure = error
            loop.call_soon_threadsafe(self._leaving.set)

    def _problems(self) -> list[str]:
        return ["the stream of samples cannot be read"] if self._judging.is_silent else []

    def _page(self) -> bytes:
        wanted = objectives({key: each.monitoring for key, each in self._judging.settings().items()})
        page: bytes = generate_latest(_Page(self._families.render(self.reading(), wanted)))
        return page


class _Page(Collector):
    """The families of one scrape, and what the process itself uses."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
        yield from ProcessCollector(registry=None).collect()

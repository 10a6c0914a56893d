"""Assembly: the only place where concrete classes meet, and the life of a serving process from start to drained.

The order of leaving matters and is spelled out in `_drain`: readiness goes first, while everything still serves, so that load
balancers look away before a single call is refused.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2_grpc

from protos.grpc_service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from protos.monitoring_pb2_grpc import add_MonitoringServiceServicer_to_server
from server.backends.cudart import Cudart
from server.core.clock import monotonic_ns
from server.core.errors import BackendDead, DeviceLost, PodiumError
from server.core.settings import ServerSettings
from server.core.versions import VersionKey
from server.dataplane.limit import InflightLimit
from server.dataplane.python.answers import Answer, settle
from server.device_memory import Machine
from server.features.without import NoFeatures
from server.levels import Levels
from server.lifecycle.accounts import Accounts
from server.lifecycle.ledger import Ledger
from server.lifecycle.manager import Manager
from server.lifecycle.published import Published
from server.lifecycle.replica import Replica
from server.monitored import Monitored
from server.optional import (
    InstalledFeatures,
    PlaneKind,
    cuda_for_sharing,
    device_readings,
    loader_over,
    open_door,
    open_plane,
)
from server.registry.lease import lease
from server.registry.measured_files import MeasuredFiles, files_digest
from server.registry.source import LocalDirectory
from server.registry.watch import changes
from server.restart import Restart
from server.service.control import Control
from server.service.engine import Engine
from server.service.fast_lane import FastLane
from server.service.outcomes import Outcomes
from server.service.predict import Predict
from server.service.usage import UsageFile, name_of
from server.telemetry import logs
from server.telemetry.consumers import Consumers
from server.telemetry.metrics import Metrics
from server.telemetry.tracer import Tracer
from server.transport.access import Access, subject_of
from server.transport.callers import CallerLimit, refusals
from server.transport.drift_report import report_of
from server.transport.hand_over import HandOver
from server.transport.health import Health
from server.transport.http import start_http
from server.transport.infer import Inference
from server.transport.listen import Door
from server.transport.malformed import Registrar
from server.transport.monitoring import MonitoringCalls
from server.transport.reflection import Reflection, add_reflection
from server.transport.runtime_settings import RuntimeSettings
from server.transport.servicer import Servicer
from server.transport.shared_memory import Regions
from server.transport.status import follow
from server.transport.streams import Streams

_log = logging.getLogger("podium")
_LAST_TRACES_S = 2.0
_BUILD = distribution_version("podium")


@dataclass(frozen=True, slots=True)
class _Pace:
    """How long each step of leaving may take."""

    delay_s: float
    grace_s: float
    models_s: float = 10.0
    engine_s: float = 10.0


def _paced(settings: ServerSettings, *, anew: bool) -> _Pace:
    if anew:
        # what runs elsewhere may end; a thread in a dead device never does
        return _Pace(0.0, min(settings.drain_grace_s, 5.0), 3.0, 1.0)
    return _Pace(settings.drain_delay_s, settings.drain_grace_s)


class Server:
    """A serving process. Ownership: the event loop that runs `run`; `features` and `monitored` are closed by who opened them,
    afterwards."""

    def __init__(
        self,
        settings: ServerSettings,
        log: logs.LogControl,
        tracer: Tracer,
        features: InstalledFeatures | NoFeatures,
        monitored: Monitored,
        kind: PlaneKind,
        restart: Restart,
    ) -> None:
        self._settings = settings
        self._tracer, self._features, self._monitored = tracer, features, monitored
        self._restart = restart
        self._loop = asyncio.get_running_loop()
        self._leaving, self._hurry = asyncio.Event(), asyncio.Event()
        self._draining = False
        self.lost = ""
        """The lost device for which this process is to begin anew, once it has drained; empty where it is just to end."""
        self._engines: list[Engine] = []
        self._door: Door | None = None
        follow(settings.error_codes)  # before the plane, which may ask how calls end
        limit = InflightLimit(settings.max_inflight_requests, settings.max_inflight_bytes)
        self._plane = open_plane(
            kind,
            monotonic_ns,
            limit,
            self._deliver,
            self._start_engine,
            self._slots_of,
            density=settings.overload_order == "density",
        )
        self._access = Access(settings.access)
        self._callers = CallerLimit(settings.limits.max_requests_per_caller)
        lane = None if self._plane.kind == "python" else self._fast_lane()
        settle = (lambda: None) if lane is None else lane.settle
        self._consumers = Consumers(settle=settle)
        usage_dir = Path(settings.usage_dir) if settings.usage_dir else None
        self._usage = UsageFile(self._consumers, usage_dir, settings.usage_flush_s)
        self._machine = Machine()
        self._ledger = Ledger(self._machine.memory, settings.device_memory_budget_ratio)
        self._metrics = self._measured(settle)
        self._lane = lane
        self._manager = self._managed(features)
        self._health = Health()
        self._reflection = Reflection() if settings.reflection else None
        self._open_door(log)

    def _managed(self, features: InstalledFeatures | NoFeatures) -> Manager:
        """Who steers the versions."""
        settings = self._settings
        source = LocalDirectory(Path(settings.repository), settings.settle_s)
        watched = partial(changes, Path(settings.repository), rescan_s=settings.rescan_s)
        return Manager(
            source=source,
            loader=loader_over(source.verify, lease, features.bind, self._accounts()),
            plane=self._plane,
            metrics=self._metrics,
            mode=settings.control_mode,
            initial=settings.load_models,
            again=self._restart.loads,
            settle_s=settings.settle_s,
            changes=watched if settings.control_mode == "poll" else None,
            on_change=self._readiness_may_have_changed,
            on_publish=self._published,
            on_device_lost=lambda reason: self._on_loop(lambda: self._leave_for(reason)),
        )

    def _published(self, published: Published) -> None:
        """Called by the lifecycle before anybody can ask for what is new."""
        self._monitored.follow(published)
        if self._lane is not None:
            self._lane.publish(published)

    def _measured(self, settle: Callable[[], None]) -> Metrics:
        """What a scrape reads."""
        levels = Levels(self._plane, lambda: self._manager, lambda: self._door, self._features.readings)
        return Metrics(
            build=_BUILD,
            queues=levels.queue,
            devices=device_readings(),
            caches=levels.cache,
            places=levels.devices,
            consumers=self._consumers.readings,
            traces=self._tracer.reading,
            refusals=lambda: refusals(self._access, self._callers),
            features=levels.features,
            door=levels.door,
            ledger=lambda: self._ledger.reading,
            monitoring=self._monitored.reading,
            objectives=self._monitored.objectives,
            settle=settle,
            device_restarts=self._restart.before.total,
        )

    def _accounts(self) -> Accounts:
        """The books of loads."""
        folder = self._settings.measured_dir
        store = MeasuredFiles(Path(folder) if folder else None)
        return Accounts(self._ledger, store, files_digest, self._machine, partial(datetime.now, UTC))

    def _fast_lane(self) -> FastLane:
        """What the native plane answers without the door's handlers."""
        settings = self._settings
        unguarded = settings.access.inference.open and not settings.limits.max_requests_per_caller
        native: Any = self._plane
        lane = FastLane(native, self._count_uses, settings.default_timeout_us, unguarded=unguarded)
        self._tracer.watch(lane.trace)
        return lane

    def _count_uses(self, key: VersionKey, consumer: str, requests: int) -> None:
        self._consumers.count(key, consumer, requests)

    def _open_door(self, log: logs.LogControl) -> None:
        settings, tracer = self._settings, self._tracer
        predict = Predict(
            self._plane, lambda: self._manager.published, settings.default_timeout_us, count_use=self._consumers.count
        )
        control = Control(self._manager)
        allowed, cuda = settings.allow_client_shm, _cuda_memory(settings)
        regions = Regions(allowed=allowed, max_read_bytes=settings.max_message_bytes, cuda=cuda, later=self._on_loop)
        hand_over = HandOver(self._plane.wake)
        names = subject_of if settings.tls.client_ca_file else None
        inference = Inference(predict, hand_over, memory=regions, tracer=tracer, subject_of=names)
        limits = (settings.max_stream_requests, settings.max_stream_bytes)
        outcomes = Outcomes(lambda: self._manager.published, self._monitored.outcomes, self._monitored.forward)
        self._monitoring = MonitoringCalls(outcomes, partial(_drift, self._monitored))
        self._streams = Streams(inference, hand_over, monotonic_ns, *limits, self._callers)
        self._servicer = Servicer(
            inference,
            self._streams,
            control,
            lambda: not self.problems(),
            _BUILD,
            RuntimeSettings(tracer, log, control.is_ready),
            regions,
            lambda: not self.fatal(),
        )

    def problems(self) -> list[str]:
        """Why this server should not be sent requests; empty when it should."""
        if self._draining:
            return ["the server is draining"]
        return [*self._manager.ready_problems(), *(engine.problem for engine in self._engines if engine.problem)]

    def fatal(self) -> list[str]:
        """Why this process should be replaced; empty while it is of use, and while it is about to begin anew by itself."""
        return [] if self._settings.restart_on_device_loss else list(self._manager.lost.values())

    async def run(self) -> bool:
        """Serve until SIGTERM or SIGINT, then drain. False if something still executes.

        Raises: OSError, RuntimeError when an address cannot be bound; OSError for certificates that cannot be used.
        """
        settings = self._settings
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._leave)
        pages = (self._metrics.render, self.problems, self._consumers.rows, self.fatal)
        http = await start_http(settings.http_address, *pages)
        try:
            # engines that outlive the drain may still have answers for it
            self._door = door = open_door(settings, self._plane)
            # as much of a server as registering needs; who may not call is not counted as a caller
            registrar: Any = Registrar(door, self._callers.limit, self._access.wrap)
            add_GRPCInferenceServiceServicer_to_server(self._servicer, registrar)
            add_MonitoringServiceServicer_to_server(self._monitoring, registrar)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, registrar)
            if self._reflection is not None:
                add_reflection(self._reflection, registrar)
            address = door.bind(settings.grpc_address)
            await self._usage.open(settings.server_name or name_of(address))
            await door.start()
            self._manager.start()
            _log.info("serving", extra={"grpc": address, "http": settings.http_address, "plane": self._plane.kind})
            await self._leaving.wait()
            drained = await self._drain(door)
            return await asyncio.to_thread(self._tracer.close, _LAST_TRACES_S) and drained
        finally:
            await http.cleanup()

    async def _drain(self, door: Door) -> bool:
        """Say so, go on serving while callers look away, refuse what is new, finish what was admitted, close.

        False if a load or an execution did not end in time.
        """
        pace = _paced(self._settings, anew=bool(self.lost))
        self._draining = True
        self._health.set_serving(False)
        _log.info("draining", extra={"delay_s": pace.delay_s, "grace_s": pace.grace_s})
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), pace.delay_s)
        self._health.close()
        self._streams.close()
        self._monitoring.close()
        if self._reflection is not None:
            self._reflection.close()
        await door.stop(pace.grace_s)
        await self._usage.close()
        emptied = await asyncio.to_thread(self._manager.stop, pace.models_s)
        await asyncio.to_thread(self._plane.stop)
        for engine in self._engines:
            await asyncio.to_thread(engine.join, pace.engine_s)
        _log.info("stopped", extra={"everything_closed": emptied})
        return emptied and not any(engine.is_alive() for engine in self._engines)

    def _leave(self) -> None:
        """The first signal begins to drain, a second one skips the delay. Who is told to leave does not begin anew."""
        if self._leaving.is_set():
            self._hurry.set()
        self.lost = ""
        self._restart.forget()
        self._leaving.set()

    def _leave_for(self, reason: str) -> None:
        """A device is lost. Called on the event loop, once everything on it is out of service."""
        if self._settings.restart_on_device_loss and not self._leaving.is_set():
            self.lost = reason
            if self._settings.control_mode == "explicit":
                self._restart.hand_on(self._manager.asked)
            self._restart.watch(reason)
            self._leaving.set()

    def _deliver(self, answers: Sequence[Answer], executed_ns: int | None) -> None:
        self._on_loop(partial(self._settle, answers, executed_ns))

    def _settle(self, answers: Sequence[Answer], executed_ns: int | None) -> None:
        settle(answers)
        if executed_ns is not None:
            # runs after the handlers that have just been given their answers: then these have left
            self._loop.call_soon(lambda: self._plane.observe_delivery(monotonic_ns() - executed_ns))

    def _start_engine(self, device: str) -> None:
        engine = Engine(
            self._plane,
            device,
            monotonic_ns,
            on_dead=self._mark_dead,
            on_crash=self._readiness_may_have_changed,
            features=self._settings.features,
            sampler=self._monitored.sampler,
        )
        self._engines.append(engine)
        engine.start()

    def _mark_dead(self, replica: Replica, error: BackendDead) -> None:
        if isinstance(error, DeviceLost):
            self._manager.lose_device(replica.device, str(error))
        else:
            self._manager.mark_dead(replica, str(error))

    def _slots_of(self, device: str) -> int:
        """On the CPU a second batch at hand would only be formed too early: gathering it takes the same cores. Where one
        waits for its features those are idle. A device that works by itself needs a thread that waits for it, one that gets
        the next batch ready and one that deals out the answers of the last."""
        if self._settings.device_slots or device != "cpu":
            return self._settings.device_slots or 3
        return 2 if self._settings.features.definitions else 1

    def _readiness_may_have_changed(self) -> None:
        """Called from the threads of the lifecycle and the engines."""
        self._on_loop(lambda: self._health.set_serving(not self.problems()))

    def _on_loop(self, function: Callable[[], None]) -> None:
        """Run on the event loop, from any thread. Once the loop is closed nobody is left to hear of it: a thread that
        outlives the drain (a load that takes minutes, a batch beyond the grace) must be able to end."""
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


def _drift(monitored: Monitored, model: str, version: str, windows: int) -> Any:
    """What `GetDrift` answers."""
    return report_of(monitored.findings(), model, version, windows)


def _cuda_memory(settings: ServerSettings) -> Cudart | None:
    """What shares the memory of GPUs, or None; where it was hoped for, the log says why not."""
    try:
        return cuda_for_sharing(settings)
    except PodiumError as error:
        _log.info("memory of a GPU cannot be shared", extra={"why": str(error)})
    return None

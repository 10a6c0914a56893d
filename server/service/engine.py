"""The engine: a thread of a device that takes batches, executes them, ends their tickets and counts.

It holds the device while it asks for work (slot first, batch second), so whatever arrives during one execution rides in the
next. It decides nothing: which batch comes next is the plan's business.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import cast

import numpy as np

from server.backends.base import Backend, DecoupledBackend
from server.core.clock import Clock
from server.core.errors import BackendDead, BackendFailed
from server.core.feature_settings import FeatureStoreSettings
from server.dataplane.interface import Batch, DataPlane, Part
from server.features.interface import Features
from server.lifecycle.replica import Replica
from server.monitoring.sampler import Sampler
from server.service.ahead import Ahead
from server.service.execute import execute
from server.service.join import Piece, join
from server.service.refuse import answered
from server.service.sampling import sample
from server.service.validate import among, validate
from server.telemetry.answers import ANSWERS_COUNTED

_log = logging.getLogger("podium.engine")
_DEFAULTS = FeatureStoreSettings()


class Engine(threading.Thread):
    """An executor of a device, for all its versions."""

    def __init__(
        self,
        plane: DataPlane,
        device: str,
        clock: Clock,
        on_dead: Callable[[Replica, BackendDead], None],
        on_crash: Callable[[], None],
        features: FeatureStoreSettings = _DEFAULTS,
        sampler: Sampler | None = None,
    ) -> None:
        """`features`: how long those of a batch may take. `sampler`: who is shown what was answered; None: nobody."""
        super().__init__(name=f"podium-engine-{device}", daemon=True)
        self._plane = plane
        self._device = device
        self._clock = clock
        self._on_dead = on_dead
        self._on_crash = on_crash
        self._features = features
        self._sampler = sampler
        self.problem = ""
        """Why this engine executes nothing any more; empty while it does."""

    def run(self) -> None:
        """Take, execute, finish, until the data plane stops."""
        try:
            while (batch := self._plane.take(self._device)) is not None:
                self._step(batch)
                del batch  # while it waits for the next one: its tensors, and a version that is unloaded meanwhile
        except Exception as error:  # noqa: BLE001 - a bug; a server that executes nothing must not look ready
            _log.exception("the engine has crashed", extra={"device": self._device})
            self.problem = f"the engine of device '{self._device}' has crashed: {type(error).__name__}: {error}"
            self._on_crash()

    def _step(self, batch: Batch) -> None:
        replica: Replica = batch.rules.handle
        execution = batch.execution
        pieces = () if replica.features is None else self._join(replica.features, replica, batch)
        refused = validate(replica, batch, pieces)
        for_nobody = sum(part.last - part.first for part in refused) == len(batch.spans) - 1
        ahead = None if for_nobody else self._begin(replica, batch, pieces)
        self._plane.enter_device(batch)
        execution.started_ns = self._clock()
        execution.lead_ns = execution.features_ns if ahead is None else execution.started_ns - execution.taken_ns
        parts = refused if for_nobody else self._execute(replica, batch, pieces, ahead)
        if not execution.ran_ns:
            self._leave(batch)
        ran_ns = execution.ran_ns
        # what was isolated by running parts again says nothing about the cost of one execution
        whole = len(parts) == 1 and parts[0].outputs is not None
        if replica.features is not None and pieces:
            parts = answered(parts, pieces, batch.spans, replica.features.names)
        if refused:
            parts = among(parts, refused, batch.spans)
        reached = self._plane.finish(batch, parts, ran_rows=batch.rows if whole else 0, ran_ns=ran_ns - execution.taken_ns)
        failed = np.zeros(len(reached), dtype=np.bool_)
        for part in parts:
            failed[part.first : part.last] = part.error is not None
        finished_ns = self._clock()
        elements, padding_elements = _elements(replica.backend, batch)
        replica.recorder.batch(
            arrival_ns=batch.arrival_ns,
            deadline_ns=batch.deadline_ns,
            taken_ns=execution.taken_ns,
            input_ns=execution.started_ns - execution.taken_ns,
            infer_ns=ran_ns - execution.started_ns,
            output_ns=finished_ns - ran_ns,
            finished_ns=finished_ns,
            spans=batch.spans,
            padded_rows=batch.padded_rows,
            elements=elements,
            padding_elements=padding_elements,
            released=batch.released,
            device=self._device,
            answered=reached,
            failed=failed,
        )
        if self._sampler is not None:
            sample(self._sampler, replica, batch, parts, pieces, reached)

    def _begin(self, replica: Replica, batch: Batch, pieces: Sequence[Piece]) -> Ahead | None:
        """Give a batch to a backend that takes it while another one executes."""
        begin = getattr(replica.backend, "begin", None)
        if begin is None or batch.fault is not None or batch.rules.decoupled or len(pieces) > 1:
            return None
        inputs = batch.inputs
        if pieces:
            if pieces[0].joined is None or not pieces[0].worth_running:
                return None
            inputs = pieces[0].joined.inputs
        return Ahead(begin, inputs, lambda: self._leave(batch))

    def _leave(self, batch: Batch) -> None:
        """The batch has run. Its answers are dealt out afterwards: they take the interpreter, not the device."""
        batch.execution.ran_ns = self._clock()
        self._plane.leave_device(batch)

    def _join(self, features: Features, replica: Replica, batch: Batch) -> Sequence[Piece]:
        """A batch with its features, looked up before it enters the device: another one may be executing there."""
        if batch.fault is not None or batch.rules.decoupled:
            return ()
        begun_ns = self._clock()
        try:
            pieces = join(features, batch, self._features, self._clock)
        except Exception as bug:  # noqa: BLE001 - no memory to find the request at fault, say
            _log.exception("features could not be joined", extra={"model": str(replica.key)})
            failed = BackendFailed(f"finding the features of '{replica.key.model}' failed: {type(bug).__name__}")
            pieces = [Piece(0, len(batch.spans) - 1, None, failed)]
        took_ns = batch.execution.features_ns = self._clock() - begun_ns
        replica.recorder.features(took_ns)
        return pieces

    def _execute(self, replica: Replica, batch: Batch, pieces: Sequence[Piece], ahead: Ahead | None) -> list[Part]:
        """The result of every request of a batch, whatever happens: a taken ticket must end."""
        error: BackendFailed
        try:
            if batch.fault is not None:
                error = batch.fault
            elif batch.rules.decoupled:
                return self._stream(replica, batch)
            else:
                return execute(replica.backend, batch, pieces, ahead)
        except BackendDead as dead:
            _log.error("backend is dead", extra={"model": str(replica.key), "reason": str(dead)})
            self._on_dead(replica, dead)
            error = dead.with_traceback(None)
        except BackendFailed as failed:
            # its traceback leads to this frame, which has it: a circle that would hold the batch until a collection
            error = failed.with_traceback(None)
        except Exception as bug:  # noqa: BLE001 - no memory to isolate a failed request, say
            _log.exception("a batch could not be executed", extra={"model": str(replica.key)})
            error = BackendFailed(f"executing '{replica.key.model}' failed: {type(bug).__name__}")
        return [Part(0, len(batch.spans) - 1, None, error)]

    def _stream(self, replica: Replica, batch: Batch) -> list[Part]:
        """Every answer of a decoupled version as it comes, while somebody waits for it; then the end.

        Raises: BackendFailed.
        """
        backend = cast(DecoupledBackend, replica.backend)
        edges_ns = [self._clock()]  # begun, computed, handed over, computed, ... of as many answers as are counted
        end = "fail"
        try:
            with closing(backend.stream(batch.inputs)) as answers:
                for outputs in answers:
                    computed_ns = self._clock()
                    if not self._plane.respond(batch, outputs):
                        end = "cancel"
                        break
                    if len(edges_ns) < 2 * ANSWERS_COUNTED:
                        edges_ns += (computed_ns, self._clock())
                else:
                    end = "empty_response"
        finally:
            replica.recorder.answers(np.diff(edges_ns), end, self._clock() - edges_ns[-1])
        return [Part(0, 1, {})]


def _elements(backend: Backend, batch: Batch) -> tuple[int, int]:
    """What a batch brought in inputs of different lengths, and what was executed beside that only as padding. A backend that
    forms its own executions counts for itself."""
    counted: tuple[int, int] | None = getattr(backend, "take_elements", _nothing)()
    return (batch.elements, batch.padding_elements) if counted is None else counted


def _nothing() -> None:
    """What most backends count for themselves."""

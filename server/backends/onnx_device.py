"""One ONNX version's batches on a device that works by itself: staged in slots, executed in turn, fetched. Floor 2.

Executions have a thread of their own: onnxruntime blocks until one is done (a replayed graph always does), and keeps cuBLAS
handles and captured graphs per thread. Copies to and from the device are made by the callers' threads meanwhile.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np

from server.backends.batching import check_rows
from server.backends.onnx_memory import DeviceMemory, HostPool
from server.backends.onnx_options import NO_GRAPH
from server.backends.onnx_slots import Slot
from server.core.errors import BackendFailed
from server.core.signature import Signature
from server.core.tensors import Array

SLOTS = 3
"""One batch is copied in, one executes, one is copied out."""


class Turns:
    """In which order a device's batches execute, whichever version they belong to: as they were handed over. Thread-safe."""

    def __init__(self) -> None:
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    def take(self) -> object:
        """A turn behind all others."""
        turn = object()
        with self._changed:
            self._waiting.append(turn)
        return turn

    def wait(self, turn: object) -> None:
        """Block until every turn before it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting[0] is turn)

    def end(self, turn: object) -> None:
        """Over, or given up before it came."""
        with self._changed:
            self._waiting.remove(turn)
            self._changed.notify_all()


_turns: dict[str, Turns] = {}


def turns_of(device: str) -> Turns:
    """Those of a device: one of each exists in a process."""
    return _turns.setdefault(device, Turns())


class DeviceBatch:
    """A batch on its way; see `server.backends.base.Pending`. Dropped, it gives its slot back when nothing uses it any more."""

    def __init__(self, runner: "DeviceRunner", signature: Signature, inputs: Mapping[str, Array], slot: Slot | None) -> None:
        self._runner = runner
        self._signature = signature
        self._inputs = inputs
        self._slot = slot
        self.future: Future[dict[str, Array] | None] = Future()

    def wait(self) -> None:
        """Block until it has been executed. Raises: as `Backend.run`."""
        try:
            self.future.result()
        except Exception as error:
            self.drop()
            raise self._runner.failure(error) from error

    def outputs(self) -> dict[str, Array]:
        """Its answers. Raises: as `Backend.run`."""
        self.wait()
        try:
            answers = self.future.result()
            if self._slot is not None:
                answers = self._slot.fetch(self._signature, _rows(self._signature, self._inputs))
        except BackendFailed:
            raise
        except Exception as error:
            raise self._runner.failure(error) from error
        finally:
            self.drop()
        if answers is None:
            raise BackendFailed("its outputs were given away")
        if self._signature.max_batch:
            check_rows(self._signature.model, self._inputs, answers)
        return answers

    def drop(self) -> None:
        """Nobody wants its answers any more. Its slot goes back once nothing executes in it."""
        (runner, slot), self._slot = (self._runner, self._slot), None
        if slot is not None:
            self.future.cancel()
            self.future.add_done_callback(lambda _: runner.put(slot))

    def __del__(self) -> None:
        self.drop()


class DeviceRunner:
    """The slots and the thread of one loaded version.

    `run_plain` executes from host memory to host memory, without slots; `run_options` makes onnxruntime's word for the
    execution of a graph; `failure` puts an error into words of the domain. Never keeps a caller's arrays longer than its batch.
    """

    def __init__(
        self,
        session: Any,
        memory: DeviceMemory,
        *,
        run_plain: Callable[[Mapping[str, Array]], dict[str, Array]],
        run_options: Callable[[int], Any],
        failure: Callable[[Exception], BackendFailed],
        turns: Turns | None,
        slots: int = SLOTS,
    ) -> None:
        """`turns`: shared by the versions of a device; None where several batches are to execute at once."""
        self.failure = failure
        self.pool = HostPool(memory)
        self._session = session
        self._memory = memory
        self._run_plain = run_plain
        self._run_options = run_options
        self._turns = turns
        self._slots = [Slot(index, memory, self.pool, session.io_binding()) for index in range(slots)]
        self._free = deque(self._slots)
        self._order = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="podium-onnx")
        self._graphs: dict[tuple[int, int], Any] = {}
        self._no_graph = run_options(NO_GRAPH)

    def begin(self, signature: Signature, inputs: Mapping[str, Array], *, in_turn: bool = True) -> DeviceBatch:
        """Copy the inputs into a free slot, and have them executed behind what was begun before (`in_turn`).

        Without a free slot onnxruntime makes the copies itself: slower, but nobody waits for somebody who waits for him.
        Raises: as `Backend.run`.
        """
        slot = self._take(inputs)
        batch = DeviceBatch(self, signature, inputs, slot)  # from here on the slot comes back by itself
        if slot is None:
            return self._submit(batch, partial(self._run_plain, inputs), in_turn=in_turn)
        rows = _rows(signature, inputs)
        try:
            slot.load(signature, inputs)
        except BackendFailed:
            batch.drop()
            raise
        except Exception as error:
            batch.drop()
            raise self.failure(error) from error
        shapes = {spec.name: inputs[spec.name].shape for spec in signature.inputs}
        options = self._graphs.get((slot.index, rows), self._no_graph)
        return self._submit(batch, partial(self._execute, slot, signature, shapes, rows, options), in_turn=in_turn)

    def run(self, signature: Signature, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """A batch at once, without waiting for those of other versions. Raises: as `Backend.run`."""
        return self.begin(signature, inputs, in_turn=False).outputs()

    def capture(self, signature: Signature, buckets: Sequence[int], sample: Callable[[int], Mapping[str, Array]]) -> None:
        """Capture the execution of every batch size in every slot, the largest first. Raises: as `Backend.run`.

        Only while nothing is begun: it needs all slots. `sample`: inputs of so many rows.
        """
        graphs: dict[tuple[int, int], Any] = {}
        for rows in reversed(buckets):
            inputs = sample(rows)
            for slot in self._slots:
                key = slot.index, _rows(signature, inputs)
                options = self._run_options(1 + len(graphs))
                shapes = {name: array.shape for name, array in inputs.items()}
                try:
                    slot.load(signature, inputs)
                    self._thread.submit(self._execute, slot, signature, shapes, key[1], options, alone=True).result()
                    slot.fetch(signature, key[1])
                except BackendFailed:
                    raise
                except Exception as error:
                    raise self.failure(error) from error
                graphs[key] = options
        for slot in self._slots:
            slot.frozen = True
        self._graphs = graphs

    def put(self, slot: Slot) -> None:
        """A slot that nothing uses any more."""
        self._free.append(slot)

    def memory_bytes(self) -> int:
        """Of all slots' buffers on the device."""
        return sum(slot.memory_bytes() for slot in self._slots)

    def close(self, drop_session: Callable[[], None]) -> None:
        """Wait for what executes, give up the rest, then everything on the device: bindings, session, buffers, stream."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        for slot in self._slots:
            slot.binding = None
        self._graphs, self._session = {}, None
        drop_session()
        for slot in self._slots:
            slot.close()
        self.pool.close()
        with suppress(RuntimeError):  # of a lost device
            self._memory.close()

    def _take(self, inputs: Mapping[str, Array]) -> Slot | None:
        try:
            slot = self._free.popleft()
        except IndexError:
            return None
        if slot.takes(inputs):
            return slot
        self._free.append(slot)
        return None

    def _submit(self, batch: DeviceBatch, work: Callable[[], dict[str, Array] | None], *, in_turn: bool) -> DeviceBatch:
        turns = self._turns if in_turn else None
        if turns is None:
            batch.future = self._thread.submit(work)
            return batch
        with self._order:  # a turn behind another one's must not be in front of it on this thread
            turn = turns.take()
            batch.future = self._thread.submit(_in_turn, turns, turn, work)
        batch.future.add_done_callback(lambda _: turns.end(turn))
        return batch

    def _execute(
        self,
        slot: Slot,
        signature: Signature,
        shapes: Mapping[str, tuple[int, ...]],
        rows: int,
        options: Any,
        *,
        alone: bool = False,
    ) -> None:
        with self._memory.exclusive() if alone else nullcontext():
            slot.bind(signature, shapes, rows)
            self._memory.order(slot.stream)
            self._session.run_with_iobinding(slot.binding, options)


def allocated(pool: HostPool, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, Array]:
    """See `PipelinedBackend.arrays`."""
    return {name: pool.array(shape, dtype) for name, (shape, dtype) in shapes.items()}


def sizes(counts: Iterable[int]) -> str:
    """Batch sizes for an operator to read: "1, 2, 4"."""
    return ", ".join(map(str, counts))


def _in_turn(turns: Turns, turn: object, work: Callable[[], dict[str, Array] | None]) -> dict[str, Array] | None:
    turns.wait(turn)
    return work()


def _rows(signature: Signature, inputs: Mapping[str, Array]) -> int:
    """0 without batching."""
    return int(next(iter(inputs.values())).shape[0]) if signature.max_batch else 0

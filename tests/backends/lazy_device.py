"""A device for tests that is as late as a device may be: work waits on its streams until somebody waits for it, and what no
event orders is executed in any order. What it hands out holds garbage, and so does what a graph wrote once another one of its
pool ran.

Whoever forgets an event, or reads memory that is not its own any more, gets a wrong answer for some seed.
"""

import threading
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

GARBAGE = 0xA5
_NEEDS_THE_HOST = ("aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::masked_select")


class _NoHost(TorchDispatchMode):  # type: ignore[misc]  # torch is untyped here (pyproject: follow_imports)
    """What a capture forbids."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name in _NEEDS_THE_HOST:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return function(*args, **(kwargs or {}))


class LazyEvent:
    def __init__(self, device: "LazyDevice") -> None:
        self._device = device
        self.done = False

    def wait(self) -> None:
        self._device.run_until(lambda: self.done)


class LazyStream:
    def __init__(self, device: "LazyDevice") -> None:
        self._device = device
        self.waiting: deque[Any] = deque()
        self.enqueued = 0

    def enqueue(self, work: Callable[[], object]) -> None:
        with self._device.lock:
            self.enqueued += 1
            self.waiting.append(work)
            self._device.dawdle()

    def call(self, work: Callable[[], Any]) -> Any:
        results: list[Any] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                results.append(work())
            except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked
                errors.append(error)

        with self._device.lock:
            self.waiting.append(run)
            self._device.run_until(lambda: bool(results or errors))
        if errors:
            raise errors[0]
        return results[0]

    def event(self) -> LazyEvent:
        with self._device.lock:
            event = LazyEvent(self._device)
            self.waiting.append(event)
            return event

    def after(self, event: Any) -> None:
        with self._device.lock:
            self.waiting.append(lambda: event)

    def step(self) -> bool:
        """Execute what is first here; False if that has to wait, or there is nothing."""
        if not self.waiting:
            return False
        first = self.waiting[0]
        if isinstance(first, LazyEvent):
            self.waiting.popleft()
            first.done = True
            return True
        if getattr(first, "__name__", "") == "<lambda>" and first.__qualname__.startswith("LazyStream.after"):
            if not first().done:
                return False
            self.waiting.popleft()
            return True
        self.waiting.popleft()
        with torch.inference_mode():
            first()
        return True


class LazyGraph:
    def __init__(self, device: "LazyDevice", work: Callable[[], list[Any]], pool: "list[LazyGraph]") -> None:
        self._device = device
        self._work = work
        self._pool = pool
        with _NoHost(), torch.inference_mode():
            self.results = [tensor.clone() for tensor in work()]
        self.spoil()
        pool.append(self)

    def spoil(self) -> None:
        with torch.inference_mode():
            for tensor in self.results:
                garbage(tensor)

    def replay(self) -> None:
        for other in self._pool:
            other.spoil()
        self._device.replays += 1
        for result, tensor in zip(self.results, self._work(), strict=True):
            result.copy_(tensor)


class LazyDevice:
    name = "lazy:0"

    def __init__(self, seed: int = 0, total_bytes: int = 2**30) -> None:
        self.lock = threading.RLock()
        self._random = Random(seed)
        self.streams: list[LazyStream] = []
        self._left = total_bytes
        self.broken: Exception | None = None
        self.replays = 0
        self.trimmed = 0

    def stream(self) -> LazyStream:
        self.streams.append(LazyStream(self))
        return self.streams[-1]

    def host_bytes(self, nbytes: int) -> Any:
        return garbage(torch.empty(nbytes, dtype=torch.uint8))

    def bytes(self, nbytes: int) -> Any:
        if nbytes > self._left:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {nbytes} bytes.")
        self._left -= nbytes
        return garbage(torch.empty(nbytes, dtype=torch.uint8))

    def capture(self, work: Callable[[], list[Any]], pool: Any) -> LazyGraph:
        return LazyGraph(self, work, pool)

    def pool(self) -> object:
        return []

    def trim(self) -> None:
        self.trimmed += 1

    def dawdle(self) -> None:
        """Do some of what there is to do, or nothing."""
        while self._random.random() < 0.3 and self._step():
            pass

    def run_until(self, reached: Callable[[], bool]) -> None:
        with self.lock:
            while not reached():
                if self.broken is not None:
                    raise self.broken
                if not self._step():
                    raise AssertionError("waits for what nobody was told to do")

    def _step(self) -> bool:
        order = self._random.sample(self.streams, len(self.streams))
        try:
            return any(stream.step() for stream in order)
        except Exception as error:  # noqa: BLE001 - a kernel fails, and with it the device
            self.broken = error
            return False


def garbage(tensor: Any) -> Any:
    if tensor.numel():
        tensor.contiguous().view(-1).view(torch.uint8).fill_(GARBAGE)
    return tensor

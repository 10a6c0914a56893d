"""Batches on their way through a device: one copy to it, the execution, one copy back, each on a stream of its own. Floor 2.

While one batch executes, the next is copied to the device and queued right behind it, and the one before is copied back; the
device goes from batch to batch without asking the host. A batch owns a *slot* (memory on the device for its inputs and outputs)
from `begin` until its outputs have been copied.

What executes is a function of the slot's inputs. All batches of a line execute one after the other, in the order in which they
were begun, whichever version they belong to: versions of one device share a line, and each instance of a version has one.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import LifoQueue
from typing import Any

import numpy as np

from server.backends.device import Device, Event, Stream
from server.backends.slabs import Layout, Slab, layout, views
from server.core.tensors import Array

SLOTS = 3
"""One batch executes, the next is staged behind it, and of the one before the answers are being copied and dealt out."""

Execute = Callable[[Any, Layout], Sequence[Any]]
"""From the slot's memory (uint8 on the device) and where the inputs lie in it to the outputs on the device."""


class Line:
    """The streams of one executor of a device. Its lock orders what is put on them."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lock = threading.Lock()
        self.inward: Stream = device.stream()
        self.compute: Stream = device.stream()
        self.outward: Stream = device.stream()


@dataclass(slots=True)
class _Slot:
    """Memory on the device of one batch at a time. `used`: when the device has let go of it."""

    inputs: Any = None
    outputs: Any = None
    used: list[Event] = field(default_factory=list)

    def settle(self) -> None:
        """Block until the device has let go of it, however the last batch ended."""
        used, self.used = self.used, []
        for event in used:
            event.wait()


class Launched:
    """A batch on its way; a `Pending`. Its slot returns with it, wherever it is dropped."""

    def __init__(
        self, slots: "LifoQueue[_Slot]", slot: _Slot, computed: Event, copied: Event, host: Any, places: Layout, kept: Any
    ) -> None:
        self._slots = slots
        self._slot: _Slot | None = slot
        self._computed = computed
        self._copied = copied
        self._host = host
        self._places = places
        self._kept = kept

    def wait(self) -> None:
        """See `Pending.wait`. Raises: what the device raises."""
        try:
            self._computed.wait()
        except BaseException:
            self._release()  # not when the error is forgotten, whose traceback leads here
            raise

    def outputs(self) -> dict[str, Array]:
        """See `Pending.outputs`. Ownership: views of one memory, which lives as long as any of them."""
        try:
            self._copied.wait()
        finally:
            self._release()
        return views(self._places, self._host.numpy())

    def _release(self) -> None:
        slot, self._slot, self._kept = self._slot, None, None
        if slot is not None:
            self._slots.put(slot)

    def __del__(self) -> None:
        self._release()


class Pipeline:
    """The way of one version's batches through a line. Thread-safe."""

    def __init__(self, line: Line, slots: int = SLOTS) -> None:
        self._line = line
        self._slots: LifoQueue[_Slot] = LifoQueue()
        for _ in range(slots):
            self._slots.put(_Slot())

    def slab(self, shapes: tuple[tuple[str, tuple[int, ...], np.dtype[Any]], ...]) -> Slab:
        """Unfilled arrays in memory that crosses in one copy."""
        arrangement = layout(shapes)
        whole = self._line.device.host_bytes(max(arrangement.nbytes, 1))
        return Slab(arrangement, whole, whole.numpy())

    def begin(self, slab: Slab, execute: Execute, names: Sequence[str]) -> Launched:
        """Put a batch on its way. `names`: of the outputs, as `execute` gives them.

        Blocks while all slots are on their way. Raises: whatever the device or `execute` raises; the slot is free again then.
        """
        slot = self._slots.get()
        try:
            slot.settle()
            return self._begin(slot, slab, execute, names)
        except BaseException:
            self._slots.put(slot)
            raise

    def _begin(self, slot: _Slot, slab: Slab, execute: Execute, names: Sequence[str]) -> Launched:
        line, nbytes = self._line, slab.arrangement.nbytes
        slot.inputs = inputs = self._enough(slot.inputs, nbytes)
        with line.lock:
            try:
                line.inward.enqueue(lambda: inputs[:nbytes].copy_(slab.whole[:nbytes], non_blocking=True))
                line.compute.after(line.inward.event())
                results = execute(inputs, slab.arrangement)
                places = _places(results, names)
                slot.outputs = outputs = self._enough(slot.outputs, places.nbytes)
                line.compute.enqueue(lambda: _collect(results, outputs, places))
                computed = line.compute.event()
                line.outward.after(computed)
                host = line.device.host_bytes(max(places.nbytes, 1))
                line.outward.enqueue(lambda: host[: places.nbytes].copy_(outputs[: places.nbytes], non_blocking=True))
                copied = line.outward.event()
            finally:
                # also when it failed half way: what was put on the streams still reads and writes the slot
                slot.used = [line.inward.event(), line.compute.event(), line.outward.event()]
        return Launched(self._slots, slot, computed, copied, host, places, slab)

    def _enough(self, memory: Any, nbytes: int) -> Any:
        if memory is not None and memory.numel() >= nbytes:
            return memory
        return self._line.device.bytes(max(nbytes, 1))


def _places(results: Sequence[Any], names: Sequence[str]) -> Layout:
    return layout(tuple((name, tuple(tensor.shape), dtype_of(tensor)) for name, tensor in zip(names, results, strict=True)))


def dtype_of(tensor: Any) -> np.dtype[Any]:
    """The numpy dtype of a tensor on any device; bfloat16 as its bit pattern."""
    word = str(tensor.dtype).removeprefix("torch.")
    return np.dtype("uint16" if word == "bfloat16" else word)


def _collect(results: Sequence[Any], outputs: Any, places: Layout) -> None:
    """Outputs side by side, so that they leave in one copy; what a graph wrote them to belongs to its next replay."""
    for tensor, place in zip(results, places.places, strict=True):
        into = outputs[place.first : place.last].view(tensor.dtype).view(tensor.shape)
        into.copy_(tensor)

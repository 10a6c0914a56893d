"""A program's executions on a device, one graph for each shape that it is prepared for. Floor 2.

A graph is hundreds of kernels for the price of one launch, and what makes the host's share of a batch small enough that Python
can feed a device. It reads and writes the same memory at every replay: inputs are copied there first, on the same stream.
What cannot be captured (a step that needs the host, a shape nobody prepared) is executed step by step.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from server.backends.device import Graph
from server.backends.pipeline import Line
from server.backends.slabs import Layout
from server.backends.torch_prepare import first_line

Execute = Callable[[list[Any]], list[Any]]
Typed = Callable[[Any, Layout], list[Any]]
"""Tensors of the program's inputs, as views of a slab on the device."""


class Graphs:
    """Executes one version on one line. `launch` is called under the line's lock; `prepare` before anything is launched."""

    def __init__(self, line: Line, execute: Execute, typed: Typed) -> None:
        self._line = line
        self._execute = execute
        self._typed = typed
        self._pool: object = None
        self._static: Any = None
        self._graphs: dict[Layout, Graph] = {}

    def prepare(self, arrangements: Sequence[Layout], fill: Callable[[Layout, Any], None]) -> str:
        """Capture a graph for each of these shapes, the largest first, since smaller ones then fit into its memory.

        `fill` writes harmless inputs into memory on the device. Returns: why one could not be captured, and none are; else "".
        """
        device = self._line.device
        try:
            self._pool = device.pool()
            ordered = sorted(arrangements, key=lambda arrangement: arrangement.nbytes, reverse=True)
            self._static = device.bytes(max(ordered[0].nbytes, 1))
            for arrangement in ordered:
                fill(arrangement, self._static)
                inputs = self._typed(self._static, arrangement)
                self._graphs[arrangement] = device.capture(partial(self._execute, inputs), self._pool)
        except Exception as error:  # noqa: BLE001 - whatever forbids it: the program still runs step by step
            self.close()
            return first_line(error)
        return ""

    def launch(self, memory: Any, arrangement: Layout) -> Sequence[Any]:
        """Execute on inputs that lie in `memory`; the outputs' tensors, which the next launch may overwrite."""
        compute = self._line.compute
        graph = self._graphs.get(arrangement)
        if graph is None:
            return compute.call(lambda: self._execute(self._typed(memory, arrangement)))
        static, nbytes = self._static, arrangement.nbytes
        compute.enqueue(lambda: static[:nbytes].copy_(memory[:nbytes]))
        compute.enqueue(graph.replay)
        return graph.results

    def close(self) -> None:
        """Let go of every graph and its memory."""
        self._graphs.clear()
        self._static = self._pool = None

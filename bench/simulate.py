"""The plan in virtual time: Poisson arrivals of many models on one device that takes exactly t0 + a*b.

What the rules alone can reach, without an interpreter, a network or a noisy machine: the ideal that a real run is compared
with, and the place where a change of the rules is judged first.
"""

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.core.errors import PodiumError
from server.core.signature import CheckedRows, Signature
from server.core.tensors import TensorSpec
from server.core.versions import VersionKey
from server.dataplane.costs import Estimate
from server.dataplane.interface import QueueRules
from server.dataplane.plan import Plan
from server.dataplane.ticket import Ticket

_SPECS = (TensorSpec("X", "UINT8", (1,)),)
_ROW = CheckedRows({"X": np.zeros((1, 1), np.uint8)}, 1, ())


@dataclass(frozen=True)
class Model:
    """One model's traffic and cost. Units: requests/s of one row; ns."""

    rate_per_s: float
    deadline_ns: int
    t0_ns: int
    row_ns: int
    max_batch: int
    share: float = 0.0

    def tau_ns(self, rows: int) -> int:
        """Time of one execution."""
        return self.t0_ns + self.row_ns * rows


class _Gone:
    """Nobody reads the answers of a simulation."""

    def done(self) -> bool:
        return True

    def set_result(self, result: object, /) -> None:
        raise AssertionError

    def set_exception(self, error: BaseException, /) -> None:
        raise AssertionError


@dataclass(frozen=True)
class Outcome:
    """Per model: offered requests, those answered on time, and the latencies of all that were executed, in ns."""

    offered: list[int]
    on_time: list[int]
    latency_ns: list[NDArray[np.int64]]
    busy_ns: list[int]


def zipf_rates(total_per_s: float, models: int) -> list[float]:
    """Rates in the proportion 1, 1/2, 1/3, …"""
    weights = 1 / np.arange(1, models + 1)
    return [float(rate) for rate in total_per_s * weights / weights.sum()]


def simulate(models: list[Model], seconds: float, seed: int, *, density: bool = False) -> Outcome:
    """Run the plan against the models' traffic."""
    rng = np.random.default_rng(seed)
    plan = Plan(Estimate(), density=density)
    arrivals: list[tuple[int, int]] = []
    for index, model in enumerate(models):
        buckets = (*(size for size in (1, 2, 4, 8, 16, 32, 48, 64, 96) if size < model.max_batch), model.max_batch)
        signature = Signature(f"m{index}", _SPECS, _SPECS, model.max_batch)
        costs = tuple(model.tau_ns(size) for size in buckets)
        plan.add_queue(
            QueueRules(
                index, VersionKey(f"m{index}", 1), signature, "cpu", buckets, costs, False, 0, True, 0, None, share=model.share
            )
        )
        gaps = rng.exponential(1e9 / model.rate_per_s, int(model.rate_per_s * seconds * 1.2) + 100)
        times = np.cumsum(gaps)
        arrivals += [(int(at), index) for at in times[times < seconds * 1e9]]
    arrivals.sort()
    offered, on_time, busy = [0] * len(models), [0] * len(models), [0] * len(models)
    latency: list[list[int]] = [[] for _ in models]
    events: list[tuple[int, int, int, list[Ticket], int, int]] = []
    now_ns, position = 0, 0
    while position < len(arrivals) or events:
        if events and (position == len(arrivals) or events[0][0] <= arrivals[position][0]):
            now_ns, token, index, tickets, rows, took = heapq.heappop(events)
            plan.queues[index].costs[0].observe(rows, took, now_ns)
            plan.executed(token, now_ns)
            busy[index] += took
            for ticket in tickets:
                on_time[index] += ticket.deadline_ns >= now_ns
                latency[index].append(now_ns - ticket.arrival_ns)
        else:
            now_ns, index = arrivals[position]
            position += 1
            offered[index] += 1
            ticket = Ticket(_ROW, _Gone(), now_ns, now_ns + models[index].deadline_ns)
            ticket.queue_id = index
            try:
                plan.admit(ticket, now_ns)
            except PodiumError:
                continue
        release = plan.decide(now_ns).release
        if release is not None:
            index = release.queue.rules.queue_id
            took = models[index].tau_ns(release.rows)
            heapq.heappush(events, (now_ns + took, release.token, index, release.tickets, release.rows, took))
    return Outcome(offered, on_time, [np.array(one, np.int64) for one in latency], busy)

"""What versions hold of the devices' memory: reserved before a load, measured after it, given back at an unload. **Pure** over
the reading of a device's memory.

Floor 4. A version that does not fit its device's budget is refused with the numbers. Never opens, closes or logs anything
itself. Used by the lifecycle's thread alone; `reading` may be read by any.

A driver tells how much of a device is in use, by whomever: what a load or an unload has changed is a difference of two
readings, taken immediately around it. So it cannot tell what another process, or another version that happened to execute,
took or gave back in between; nor memory that an unload left in a cache of its library, from which the next load is served.
The first load on a CUDA device also pays for this process's context, which no unload returns. None of it is lost to the
budget, which counts all that the driver says is in use: what no version accounts for is said to be of others.
"""

from collections.abc import Callable
from dataclasses import dataclass

from server.core.errors import LoadFailed
from server.core.versions import VersionKey
from server.lifecycle.estimate import Estimate

ReadMemory = Callable[[str], tuple[int, int] | None]
"""Bytes of a device that are in use, by whomever, and all there are; None for a device that does not tell."""

PAGE_BYTES = 2 * 2**20
"""Drivers hand out memory in pages of this size: less than one is not missed."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What the replicas of one version hold on one device. `measured_bytes`: of those that are loaded."""

    key: VersionKey
    device: str
    reserved_bytes: int
    measured_bytes: int


@dataclass(frozen=True, slots=True)
class Budget:
    """One device: what versions may hold of it, and what unloads have not given back since the process started."""

    device: str
    budget_bytes: int
    unreturned_bytes: int


@dataclass(frozen=True, slots=True)
class LedgerReading:
    """All books at one instant."""

    holdings: tuple[Holding, ...] = ()
    budgets: tuple[Budget, ...] = ()


class Reservation:
    """One replica's memory on one device, from before it is opened until it is closed.

    Units: bytes. `nbytes` counts against the budget: the estimate, and what was measured once that is known. `room_bytes` is
    what was free for it.
    """

    def __init__(self, ledger: "Ledger", key: VersionKey, device: str, estimate: Estimate, room: int, used: int) -> None:
        self.key = key
        self.device = device
        self.estimate = estimate
        self.room_bytes = room
        self.nbytes = estimate.nbytes
        self.measured_bytes: int | None = None
        self._ledger = ledger
        self._used_before = used

    def measure(self) -> int | None:
        """Take over what the load has taken, now that it is over: the difference of two readings, None where there is none."""
        reading = self._ledger.memory(self.device)
        if reading is not None:
            self.nbytes = self.measured_bytes = max(0, reading[0] - self._used_before)
            self._ledger.publish()
        return self.measured_bytes

    def check(self) -> None:
        """Raises: LoadFailed where it took more than there was: at its next load it would not be let in either."""
        if self.measured_bytes is not None and self.measured_bytes > self.room_bytes:
            raise LoadFailed(
                f"it took {amount(self.measured_bytes)} of {self.device}, where its budget had {amount(self.room_bytes)} left"
                f" ({amount(self.estimate.nbytes)} were expected: {self.estimate.source})"
            )

    def release(self, close: Callable[[], None]) -> int:
        """Close what holds the memory. Returns the bytes that the device did not get back; 0 where it does not tell.

        Raises: what `close` raises; the books are right even then.
        """
        before = self._ledger.memory(self.device)
        unreturned = 0
        try:
            close()
        finally:
            after = self._ledger.memory(self.device)
            if before is not None and after is not None:
                took = before[0] - self._used_before if self.measured_bytes is None else self.measured_bytes
                missing = took - (before[0] - after[0])
                unreturned = missing if missing >= PAGE_BYTES else 0
            self._ledger.remove(self, unreturned)
        return unreturned


class Ledger:
    """The books of all devices that tell how much of their memory is in use; the others have none.

    `budget_ratio` is the part of a device's memory that may be in use, by whomever.
    """

    def __init__(self, memory: ReadMemory, budget_ratio: float) -> None:
        self.memory = memory
        self.reading = LedgerReading()
        self._budget_ratio = budget_ratio
        self._reservations: list[Reservation] = []
        self._budgets: dict[str, int] = {}
        self._unreturned: dict[str, int] = {}

    def reserve(self, key: VersionKey, device: str, estimate: Estimate, stated_bytes: int | None = None) -> Reservation | None:
        """Room for a version, immediately before it is opened; None for a device that does not tell.

        `stated_bytes`: all the memory of a device that is not there yet, and so cannot be asked.
        Raises: LoadFailed with what it needs, what the budget is, and who holds how much of it.
        """
        reading = self.memory(device) or (None if stated_bytes is None else (0, stated_bytes))
        if reading is None:
            return None
        used, total = reading
        budget = self._budgets[device] = int(total * self._budget_ratio)
        self._unreturned.setdefault(device, 0)
        here = [each for each in self._reservations if each.device == device]
        booked = sum(each.nbytes for each in here)
        # what is in use and nobody here accounts for is not ours to spend
        others = max(0, used - booked)
        room = budget - others - booked
        if estimate.nbytes > room:
            raise LoadFailed(_refusal(key, device, estimate, total, budget, here, others))
        reservation = Reservation(self, key, device, estimate, room, used)
        self._reservations.append(reservation)
        self.publish()
        return reservation

    def remove(self, reservation: Reservation, unreturned: int) -> None:
        """For `Reservation.release`: strike it out."""
        self._reservations.remove(reservation)
        self._unreturned[reservation.device] += unreturned
        self.publish()

    def publish(self) -> None:
        """For `Reservation`: make what changed known, by one reference assignment."""
        sums: dict[tuple[VersionKey, str], tuple[int, int]] = {}
        for each in self._reservations:
            reserved, measured = sums.get((each.key, each.device), (0, 0))
            sums[each.key, each.device] = reserved + each.nbytes, measured + (each.measured_bytes or 0)
        self.reading = LedgerReading(
            tuple(Holding(*of, *numbers) for of, numbers in sorted(sums.items())),
            tuple(Budget(device, nbytes, self._unreturned[device]) for device, nbytes in sorted(self._budgets.items())),
        )


def amount(nbytes: int) -> str:
    """Bytes for people and for programs.

    >>> amount(3 * 2**29), amount(5)
    ('1.5 GiB (1610612736 bytes)', '5 bytes')
    """
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if abs(nbytes) >= 2**power:
            return f"{nbytes / 2**power:.1f} {unit} ({nbytes} bytes)"
    return f"{nbytes} bytes"


def _refusal(
    key: VersionKey, device: str, estimate: Estimate, total: int, budget: int, here: list[Reservation], others: int
) -> str:
    free = budget - others - sum(each.nbytes for each in here)
    holders = [(each.nbytes, str(each.key)) for each in here]
    if others:
        holders.append((others, "others (other processes, and what no version accounts for)"))
    # the largest first; equal ones by name, so that the same state is told the same way
    told = ", ".join(f"{who} {amount(nbytes)}" for nbytes, who in sorted(holders, key=lambda each: (-each[0], each[1])))
    text = (
        f"{device} has no room for it: it needs {amount(estimate.nbytes)} ({estimate.source}), and {amount(max(0, free))} of"
        f" the budget of {amount(budget)} (of {amount(total)} in all) are free; held by: {told or 'nobody'}"
    )
    own = sum(each.nbytes for each in here if each.key == key)
    if own and estimate.nbytes <= free + own:
        text += f"; a reload needs room for both: it would fit once the {key} that is in memory has been unloaded"
    return text

"""One load's books: memory reserved before anything is opened, measured at the end, and what was measured kept for later loads.

Floor 4: a recipe over hands that are given to it (the ledger, the documents beside versions, what the machine is called).
Keeping is best effort: no load fails because a measurement could not be read or written.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from server.backends.base import Backend
from server.core.errors import RegistryError
from server.core.measured import Measured, settings_digest
from server.core.placement import device_of, stated_bytes
from server.core.settings import ModelSettings
from server.lifecycle.estimate import estimate
from server.lifecycle.found import FoundVersion
from server.lifecycle.ledger import Ledger, Reservation

_log = logging.getLogger(__name__)


class Machine(Protocol):
    """What executes here: `server.device_memory.Machine`."""

    def kind(self, device: str) -> str:
        """Devices of one kind are as fast as each other, and hold a version in as much memory."""
        ...

    def libraries(self, backend: str, device: str) -> Mapping[str, str]:
        """Name and version of what executes a backend's versions on a device."""
        ...


class Store(Protocol):
    """`server.registry.measured_files.MeasuredFiles`."""

    def read(self, found: Any, device_kind: str, backend: str, /) -> Measured | None:
        """What was measured of a version by this backend on this kind of device."""
        ...

    def write(self, found: Any, measured: Measured, /) -> bool:
        """Keep it; False where that cannot be."""
        ...


@dataclass(frozen=True, slots=True)
class Account:
    """One load. `reservation` is None on a device that does not tell of its memory; `files` None where they cannot be told."""

    found: FoundVersion
    settings: ModelSettings
    backend: str
    device: str
    files: str | None
    reservation: Reservation | None


class Accounts:
    """Opens and settles the account of every load. Ownership: the lifecycle's thread.

    `files_digest` is `server.registry.measured_files.files_digest`.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        files_digest: Callable[[Any], str],
        machine: Machine,
        now: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._files_digest = files_digest
        self._machine = machine
        self._now = now

    def open(self, found: FoundVersion, settings: ModelSettings, backend: str) -> Account:
        """Reserve what a version will take, immediately before it is opened. Raises: LoadFailed where it does not fit."""
        device = device_of(backend, settings)
        files: str | None = None
        try:
            files = self._files_digest(found)
        except (OSError, RegistryError) as error:
            _log.debug("%s: its files cannot be told: %s", found.key, error)
        known = None if files is None else self._store.read(found, self._machine.kind(device), backend)
        if known is not None and (known.files, known.settings) != (files, settings_digest(backend, settings)):
            known = None
        expected = estimate(backend, settings, found.size_bytes, known)
        reservation = self._ledger.reserve(found.key, device, expected, stated_bytes(device, settings))
        return Account(found, settings, backend, device, files, reservation)

    def settle(self, account: Account, opened: Backend, buckets: Sequence[int], costs_ns: Sequence[int]) -> None:
        """Measure, keep what was measured, and see whether it was more than there was room for.

        Kept first: a version that was too large for its device is not opened again to find that out.
        Raises: LoadFailed.
        """
        reservation = account.reservation
        took = None if reservation is None else reservation.measure()
        if reservation is not None and took is not None:
            _log.info(
                "%s: took %d bytes of %s, %d expected (%s)",
                account.found.key,
                took,
                account.device,
                reservation.estimate.nbytes,
                reservation.estimate.source,
            )
        self._keep(account, opened, dict(zip(buckets, costs_ns, strict=True)), took)
        if reservation is not None:
            reservation.check()

    def _keep(self, account: Account, opened: Backend, costs_ns: Mapping[int, int], took: int | None) -> None:
        known = {rows: cost_ns for rows, cost_ns in costs_ns.items() if cost_ns}
        if account.files is None or not (known or took):
            return
        key, device = account.found.key, account.device
        measured = Measured(
            model=key.model,
            version=key.version,
            measured_at=self._now(),
            device_kind=self._machine.kind(device),
            backend=account.backend,
            platform=opened.platform,
            libraries=dict(self._machine.libraries(account.backend, device)),
            files=account.files,
            settings=settings_digest(account.backend, account.settings),
            instances=account.settings.instances,
            memory_bytes=took or None,
            costs_ns=known,
        )
        self._store.write(account.found, measured)

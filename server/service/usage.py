"""Keeps what consumers used: read once at the start, written again whenever something changed, and at the end.

Floor 5: between the counting (`server.telemetry.consumers`) and the disk; without a folder it only adds up. It never holds up
serving: all of it happens on a thread, and a disk that refuses is said once and tried again.
"""

import asyncio
import logging
import re
import socket
from contextlib import suppress
from pathlib import Path

from server.core.errors import RegistryError
from server.registry.durable import write_atomically
from server.telemetry.consumers import Consumers
from server.telemetry.usage import read_usage

SUFFIX = ".json"
_log = logging.getLogger("podium.usage")


def name_of(address: str) -> str:
    """What a server calls itself where nobody named it: its host and the address it serves at, as a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{socket.gethostname()}-{address}").lstrip("-.")[:128]


class UsageFile:
    """The file `<folder>/<server>.json` of one running server; `folder` None: no file.

    Ownership: the event loop; one write at a time.
    """

    def __init__(self, consumers: Consumers, folder: Path | None, flush_s: float) -> None:
        self._consumers = consumers
        self._folder = folder
        self._flush_s = flush_s
        self._path: Path | None = None
        self._server = ""
        self._owed = False
        self._refused = False
        self._task: asyncio.Task[None] | None = None

    async def open(self, server: str) -> None:
        """Go on from what an earlier process of this name wrote, and write from now on. Before anything is counted.

        A file that nobody can read is put aside (`.unreadable` after its name) rather than written over.
        """
        self._server = server
        if self._folder is not None:
            self._path = self._folder / (server + SUFFIX)
            await asyncio.to_thread(self._resume, self._path)
        self._task = asyncio.create_task(self._forever())

    async def close(self) -> None:
        """Write what is not written yet. Idempotent; nothing where it was never opened."""
        if self._task is None:
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        await asyncio.to_thread(self._flush)

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(self._flush_s)
            # not to be cut off in the middle: `close` writes after it
            writing = asyncio.ensure_future(asyncio.to_thread(self._flush))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await writing
                raise

    def _resume(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{path.name}-*"):
                left.unlink()  # what an earlier process of this name was writing when it was killed
            self._consumers.resume(read_usage(path.read_bytes(), str(path)))
        except FileNotFoundError:
            return
        except RegistryError as error:
            aside = path.with_name(path.name + ".unreadable")
            _log.error("what consumers used before cannot be read", extra={"reason": str(error), "kept_as": aside.name})
            with suppress(OSError):
                path.replace(aside)
        except OSError as error:
            self._refuse(error)

    def _flush(self) -> None:
        self._owed = self._consumers.changed() or self._owed
        if not self._owed:
            return
        if self._path is None:
            self._consumers.fold()
            self._owed = False
            return
        try:
            write_atomically(self._path, self._consumers.text(self._server))
        except OSError as error:
            self._refuse(error)
        else:
            self._owed = self._refused = False

    def _refuse(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            _log.error("what consumers use cannot be kept", extra={"file": str(self._path), "reason": str(error)})

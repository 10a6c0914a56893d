"""The archive around an exported program: which records it may have, and how their bytes are read. Floor 2.

`torch.export.load` unpickles sample inputs, and weights and constants that ask for it; it evaluates strings as Python, and
loads shared libraries that an archive brings along. So torch is never given the file. It is opened here as the zip it is,
with zipfile and json alone: names must be on a list, records are stored and not compressed (no record is larger than what
it takes of the file), weights are raw numbers. Never unpickles and never writes to disk.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from server.core.errors import LoadFailed

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/"
CONSTANTS = "data/constants/"
WEIGHTS_CONFIG = f"{WEIGHTS}model_weights_config.json"
CONSTANTS_CONFIG = f"{CONSTANTS}model_constants_config.json"
OWN = "extra/podium.json"

_MOST_JSON_BYTES = 64 * 2**20
_MOST_RECORDS = 100_000
_REQUIRED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_USED = re.compile(
    rf"{re.escape(PROGRAM)}|{re.escape(WEIGHTS_CONFIG)}|{re.escape(CONSTANTS_CONFIG)}|{re.escape(OWN)}"
    r"|data/weights/weight_[0-9]{1,9}|data/constants/tensor_[0-9]{1,9}|archive_format|archive_version|byteorder"
)
_NEVER_OPENED = re.compile(r"data/sample_inputs/model\.pt|\.data/(?:version|serialization_id)|extra/[\w.-]{1,200}")
_ROOT = re.compile(r"[\w.-]{1,200}")
_SHOWN = 120


class Pt2Archive:
    """An open archive whose list of records was found harmless. A context manager.

    Raises: LoadFailed, with the record's name, on opening and on reading.
    """

    def __init__(self, path: Path) -> None:
        with _damage("the archive"):
            self._zip = zipfile.ZipFile(path)
        try:
            self._records = self._checked(path.stat().st_size)
            for name, wanted in _REQUIRED.items():
                if (found := self._read(name, len(wanted) + 1)) != wanted:
                    raise LoadFailed(f"record '{name}' says {found[:20]!r}; this server reads {wanted!r}")
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._zip.close()

    def has(self, name: str) -> bool:
        """Whether the archive has a record."""
        return name in self._records

    def json(self, name: str) -> Any:
        """A record as parsed JSON. Raises: LoadFailed for one that is none, or larger than 64 MiB."""
        content = self._read(name, _MOST_JSON_BYTES)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise LoadFailed(f"record '{name}' is no JSON: {str(error)[:_SHOWN]}") from None

    def tensor_bytes(self, name: str) -> bytearray:
        """The bytes of a stored tensor. Ownership: the caller's."""
        content = bytearray(self._info(name).file_size)
        with _damage(f"record '{name}'"), self._zip.open(self._info(name)) as opened:
            record: Any = opened  # typeshed does not know that it reads into memory that is there
            view, done = memoryview(content), 0
            while done < len(content) and (count := record.readinto(view[done:])):
                done += count
        if done < len(content):
            raise LoadFailed(f"record '{name}' ends after {done} of {len(content)} bytes")
        return content

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self._records.get(name)
        if info is None:
            raise LoadFailed(f"record '{name}' is missing")
        return info

    def _read(self, name: str, most: int) -> bytes:
        info = self._info(name)
        if info.file_size > most:
            raise LoadFailed(f"record '{name}' has {info.file_size} bytes; at most {most} are read")
        with _damage(f"record '{name}'"):
            return self._zip.read(info)

    def _checked(self, file_bytes: int) -> dict[str, zipfile.ZipInfo]:
        infos = self._zip.infolist()
        if not 0 < len(infos) <= _MOST_RECORDS:
            raise LoadFailed(f"the archive has {len(infos)} records; 1 to {_MOST_RECORDS} are read")
        root = infos[0].filename.partition("/")[0]
        if not _ROOT.fullmatch(root) or root in (".", ".."):
            raise LoadFailed(f"record {infos[0].filename[:_SHOWN]!r} lies in no plain folder")
        records: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            # orig_filename: zipfile cuts a name at a zero byte
            name = info.orig_filename.removeprefix(f"{root}/")
            if name == info.orig_filename or not (_USED.fullmatch(name) or _NEVER_OPENED.fullmatch(name)):
                raise LoadFailed(f"record {info.orig_filename[:_SHOWN]!r} is not one that a served program may have")
            if name in records:
                raise LoadFailed(f"record '{name}' is there twice")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise LoadFailed(f"record '{name}' is compressed or encrypted; torch stores records as they are")
            records[name] = info
        if sum(info.file_size for info in infos) > file_bytes:
            raise LoadFailed("the records of the archive overlap: together they are larger than the file")
        return records


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """What zipfile raises for a file that is no whole zip, as LoadFailed."""
    try:
        yield
    except FileNotFoundError:
        raise LoadFailed("the file is missing from the version's folder") from None
    except LoadFailed:
        raise
    except Exception as error:  # noqa: BLE001 - damaged headers make zipfile raise nearly anything, struct.error too
        raise LoadFailed(f"{what} cannot be read: {str(error)[:_SHOWN] or type(error).__name__}") from None

"""The two files of a contract: `features.json`, which people can read, and `features.npz`, the arrays it points into.

Reading never unpickles and never executes. A file of another origin, or one that is cut off, too large or damaged, is refused.
"""

import hashlib
import io
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from feature_client.errors import ContractError
from feature_client.schema import Array, Columns

DOCUMENT_FILE = "features.json"
ARRAYS_FILE = "features.npz"

MAX_DOCUMENT_BYTES = 16 * 2**20
MAX_ARRAYS_BYTES = 2**30
"""More than any contract has; a file put there by mistake must not fill the memory."""

Slots = dict[str, dict[str, Any]]


class Shelf:
    """Arrays by number, as they are stored: bytes columns as one buffer, where each value ends, and which are none."""

    def __init__(self, arrays: Mapping[str, Array] | None = None) -> None:
        self.arrays: dict[str, Array] = dict(arrays or {})

    def put(self, columns: Columns) -> Slots:
        """Keep columns; where they are."""
        return {name: self._put(column) for name, column in columns.items()}

    def take(self, slots: Slots) -> dict[str, Array]:
        """The columns that `put` was given. Raises: KeyError, TypeError, ValueError for slots that it did not give."""
        return {name: self._take(slot) for name, slot in slots.items()}

    def _put(self, column: Array) -> dict[str, Any]:
        name = f"a{len(self.arrays)}"
        if column.dtype != object:
            self.arrays[name] = column
            return {"array": name}
        flat = column.ravel().tolist()
        self.arrays[name] = np.frombuffer(b"".join(each for each in flat if each is not None), np.uint8)
        self.arrays[name + "_ends"] = np.cumsum([0 if each is None else len(each) for each in flat], dtype=np.int64)
        self.arrays[name + "_none"] = np.array([each is None for each in flat], dtype=np.bool_)
        return {"array": name, "shape": list(column.shape)}

    def _take(self, slot: dict[str, Any]) -> Array:
        stored = self.arrays[slot["array"]]
        if "shape" not in slot:
            return stored
        buffer, ends, none = stored.tobytes(), self.arrays[slot["array"] + "_ends"], self.arrays[slot["array"] + "_none"]
        flat = np.empty(len(ends), dtype=object)
        begin = 0
        for place, (end, missing) in enumerate(zip(ends.tolist(), none.tolist(), strict=True)):
            if not begin <= end <= len(buffer):
                raise ValueError("a column of bytes has ends outside of its buffer")
            flat[place] = None if missing else buffer[begin:end]
            begin = end
        return flat.reshape(slot["shape"])


def write_files(folder: Path, document: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write both files, each whole or not at all, the document last: where it is there, its arrays are.

    Equal contents give equal bytes.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    packed = buffer.getvalue()
    where = {"file": ARRAYS_FILE, "bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
    text = json.dumps({**document, "arrays": where}, indent=1, allow_nan=False) + "\n"
    _write(folder / ARRAYS_FILE, packed)
    _write(folder / DOCUMENT_FILE, text.encode())


def read_files(folder: Path) -> tuple[dict[str, Any], Shelf] | None:
    """The document and its arrays; None where the folder has no document. Raises: ContractError."""
    data = _read(folder / DOCUMENT_FILE, MAX_DOCUMENT_BYTES)
    if data is None:
        return None
    try:
        document = json.loads(data)
        where = document["arrays"]
        promised = where["bytes"], where["sha256"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ContractError(f"{DOCUMENT_FILE}: no description of features: {type(error).__name__}: {error}") from None
    packed = _read(folder / ARRAYS_FILE, MAX_ARRAYS_BYTES)
    if packed is None:
        raise ContractError(f"{ARRAYS_FILE} is missing, which {DOCUMENT_FILE} points into")
    if (len(packed), hashlib.sha256(packed).hexdigest()) != promised:
        raise ContractError(f"{ARRAYS_FILE} is not the file that {DOCUMENT_FILE} was written with")
    return document, Shelf(_arrays(packed))


def _arrays(packed: bytes) -> dict[str, Array]:
    try:
        with ZipFile(io.BytesIO(packed)) as archive:
            # only as they are written here: what is compressed could become any size
            members = archive.infolist()
        if any(each.compress_type != ZIP_STORED for each in members):
            raise ContractError(f"{ARRAYS_FILE} is compressed")
        if sum(each.file_size for each in members) > len(packed) or len({each.filename for each in members}) < len(members):
            raise ContractError(f"{ARRAYS_FILE} has the same bytes, or the same name, more than once")
        with np.load(io.BytesIO(packed), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except ContractError:
        raise
    # there is no end to what a damaged or foreign file makes zipfile and numpy raise; objects, which only pickle could read,
    # are among it
    except Exception as error:  # noqa: BLE001
        raise ContractError(f"{ARRAYS_FILE}: no arrays: {type(error).__name__}: {error}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy hands over what is no array as it is
            raise ContractError(f"{ARRAYS_FILE}: no arrays: '{name}' is none")
    return arrays


def _read(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else b""
            if len(data) > limit or (not data and os.fstat(file.fileno()).st_size > limit):
                raise ContractError(f"{path.name} has more than {limit} bytes")
            return data
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ContractError(f"{path.name} cannot be read: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    temporary = path.parent / f".{path.name}-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)  # without it a rename may be undone by a power cut
    finally:
        os.close(handle)

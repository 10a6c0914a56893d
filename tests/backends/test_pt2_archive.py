import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from server.backends.pt2_archive import OWN, PROGRAM, WEIGHTS_CONFIG, Pt2Archive
from server.core.errors import LoadFailed
from tests.backends.programs import archived, records, small, write

Records = dict[str, bytes]


def test_records_are_read_as_they_are(tmp_path: Path) -> None:
    content = small()
    with Pt2Archive(write(tmp_path, content)) as archive:
        assert archive.json(PROGRAM)["schema_version"]["major"] == 8
        assert archive.has(WEIGHTS_CONFIG)
        assert not archive.has(OWN)
        assert bytes(archive.tensor_bytes("data/weights/weight_0")) == records(content)["data/weights/weight_0"]
        for read in (archive.json, archive.tensor_bytes):
            with pytest.raises(LoadFailed, match="record 'data/weights/weight_7' is missing"):
                read("data/weights/weight_7")
        with pytest.raises(LoadFailed, match="record 'byteorder' is no JSON"):
            archive.json("byteorder")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="missing from the version's folder"):
        Pt2Archive(tmp_path / "program.pt2")


def _without(name: str) -> Callable[[Records], bytes]:
    return lambda found: archived({key: value for key, value in found.items() if key != name})


def _with(name: str, content: bytes) -> Callable[[Records], bytes]:
    return lambda found: archived({**found, name: content})


def _twice(found: Records) -> bytes:
    buffer = io.BytesIO(archived(found))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"archive/{PROGRAM}", b"{}")
    return buffer.getvalue()


def _zero_byte(found: Records) -> bytes:
    # a name that ends early for those who stop at a zero byte
    return archived(found).replace(b"archive/byteorder", b"archive/byteorde\x00")


def _overlapping(found: Records) -> bytes:
    """Every entry of the directory stands at the place, and has the size, of the largest."""
    content = bytearray(archived({**found, "data/weights/weight_8": bytes(10_000), "data/weights/weight_9": bytes(10_000)}))
    for name in ("weight_8", "weight_9"):
        entry = content.rindex(f"archive/data/weights/{name}".encode()) - 46
        struct.pack_into("<II", content, entry + 20, 2**31 - 2, 2**31 - 2)
    return bytes(content)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda found: b"", "the archive cannot be read"),
        (lambda found: b"PK\x05\x06" + bytes(18), "the archive has 0 records"),
        # without its end, the last directory in sight is that of the samples, which are an archive themselves
        (lambda found: archived(found)[:-30], "record 'archive/data.pkl' is not one"),
        (lambda found: archived(found, root=".."), "lies in no plain folder"),
        (lambda found: archived(found, root="a b"), "lies in no plain folder"),
        (_without("byteorder"), "record 'byteorder' is missing"),
        (_with("byteorder", b"big"), "record 'byteorder' says b'big'; this server reads b'little'"),
        (_with("archive_version", b"1"), "record 'archive_version' says b'1'"),
        (_with("archive_format", b"pt3"), "record 'archive_format' says b'pt3'"),
        (_with("archive_format", b"pt2 and more"), "record 'archive_format' has 12 bytes; at most 4 are read"),
        (_with("models/other.json", b"{}"), "record 'archive/models/other.json' is not one"),
        (_twice, f"record '{PROGRAM}' is there twice"),
        (_zero_byte, "is not one that a served program may have"),
        (_overlapping, "the records of the archive overlap"),
        (lambda found: archived(found, compression=zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, change: Callable[[Records], bytes], text: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        Pt2Archive(write(tmp_path, change(records(small()))))
    assert text in str(caught.value)


def test_damaged_records_are_noticed(tmp_path: Path) -> None:
    content = bytearray(small())
    content[content.index(records(small())["data/weights/weight_0"])] ^= 1
    with (
        Pt2Archive(write(tmp_path, bytes(content))) as archive,
        pytest.raises(LoadFailed, match=r"record 'data/weights/weight_0' cannot be read: Bad CRC"),
    ):
        archive.tensor_bytes("data/weights/weight_0")


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff", b"1" * 5000, b""])
def test_json_that_is_none(tmp_path: Path, text: bytes) -> None:
    path = write(tmp_path, archived({**records(small()), PROGRAM: text}))
    with Pt2Archive(path) as archive, pytest.raises(LoadFailed, match=f"record '{PROGRAM}' is no JSON"):
        archive.json(PROGRAM)

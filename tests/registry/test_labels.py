"""Labels are lines of a file of the version, or else of the model; anything else fails the load."""

from pathlib import Path

import pytest

from server.core.errors import RegistryError
from server.registry import labels
from server.registry.labels import read_labels


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = tmp_path / "repository" / "m" / "3"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"cat\ndog\n", ("cat", "dog")),
        (b"cat\r\n\r\ndog", ("cat", "", "dog")),
        (b"a\x0bb\xe2\x80\xa8c\n\n", ("a\x0bb\u2028c", "")),
        (b"", ()),
    ],
)
def test_a_line_is_a_label(version: Path, data: bytes, found: tuple[str, ...]) -> None:
    (version / "labels.txt").write_bytes(data)
    assert read_labels(version, "labels.txt") == found


def test_the_versions_own_file_comes_first(version: Path) -> None:
    (version.parent / "labels.txt").write_text("old\n")
    assert read_labels(version, "labels.txt") == ("old",)
    (version / "labels.txt").write_text("new\n")
    assert read_labels(version, "labels.txt") == ("new",)
    assert read_labels(version, "3/labels.txt") == ("new",)


def told(version: Path, file: str) -> str:
    with pytest.raises(RegistryError) as caught:
        read_labels(version, file)
    return str(caught.value)


def test_what_cannot_be_read_says_why(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(version, "x.txt") == "labels 'x.txt' are neither in the version's folder nor in the model's"
    (version / "folder").mkdir()
    assert told(version, "folder") == "labels 'folder' cannot be read: Is a directory"
    (version / "bad.txt").write_bytes(b"\xff\n")
    assert told(version, "bad.txt") == "labels 'bad.txt' are no UTF-8"
    secret = version.parent.parent.parent / "secret.txt"
    secret.write_text("s\n")
    (version / "link.txt").symlink_to(secret)
    assert told(version, "link.txt") == "labels 'link.txt' are outside of the model's folder"
    monkeypatch.setattr(labels, "MAX_BYTES", 3)
    (version / "long.txt").write_text("abcd")
    assert told(version, "long.txt") == "labels 'long.txt' have more than 3 bytes"
    (version / "fits.txt").write_text("abc")
    assert read_labels(version, "fits.txt") == ("abc",)

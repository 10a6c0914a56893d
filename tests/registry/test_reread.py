"""Documents are parsed once per change, refused ones too, and forgotten when nobody asks for them any more."""

from pathlib import Path

import pytest

from server.core.errors import RegistryError
from server.registry.reread import Reread


class Parser:
    """Counts how often it is asked; refuses what is not a number."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, data: bytes) -> int:
        self.asked += 1
        if not data.isdigit():
            raise RegistryError(f"{data!r} is no number")
        return int(data)


def test_it_parses_once_per_change(tmp_path: Path) -> None:
    parse, path = Parser(), tmp_path / "number"
    documents = Reread(parse)
    assert documents.get(path) is None
    for content, asked in (("1", 1), ("23", 2)):
        path.write_text(content)
        assert [documents.get(path), documents.get(path)] == [int(content)] * 2
        assert parse.asked == asked
    path.write_text("no")
    for _ in range(2):
        with pytest.raises(RegistryError, match="b'no' is no number"):
            documents.get(path)
    assert parse.asked == 3
    path.unlink()
    assert documents.get(path) is None


def test_what_is_not_used_is_forgotten(tmp_path: Path) -> None:
    parse = Parser()
    documents = Reread(parse)
    for name in ("a", "b"):
        (tmp_path / name).write_text("1")
        documents.get(tmp_path / name)
    documents.forget_except([tmp_path / "a"])
    for name in ("a", "b"):
        documents.get(tmp_path / name)
    assert parse.asked == 3


def test_a_folder_in_its_place_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "number").mkdir()
    with pytest.raises(RegistryError, match=r"^number: Is a directory$"):
        Reread(Parser()).get(tmp_path / "number")

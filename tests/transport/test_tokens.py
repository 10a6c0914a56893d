"""What a file of tokens may hold."""

import hashlib
from pathlib import Path

import pytest

from server.transport.tokens import MAX_FILE_BYTES, Tokens, read_tokens


def test_tokens_and_digests_comments_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# comment\n\n  plain \r\nci:job:{hashlib.sha256(b'hashed').hexdigest().upper()}\n")
    tokens = Tokens(path)
    assert tokens.admits("plain")
    assert tokens.admits("hashed")
    for wrong in ("", "# comment", "plain ", "ci", hashlib.sha256(b"hashed").hexdigest(), "\udc80", "hash€d"):
        assert not tokens.admits(wrong)


def test_tokens_are_kept_as_digests_only(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("plain\n")
    assert read_tokens(path) == (hashlib.sha256(b"plain").digest(),)


@pytest.mark.parametrize("line", ["two words", "name: " + "0" * 64, "t\u00f6ken", "\0"])
def test_lines_that_are_neither_are_refused_without_being_shown(tmp_path: Path, line: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"good\n{line}\n")
    with pytest.raises(OSError, match="line 2 is neither a token nor 'name:' and 64 hex digits") as told:
        read_tokens(path)
    assert line not in str(told.value)


def test_files_that_cannot_be_read_or_are_too_long(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be read: No such file or directory"):
        Tokens(tmp_path / "none")
    with pytest.raises(OSError, match="cannot be read: Is a directory"):
        Tokens(tmp_path)
    path = tmp_path / "long"
    path.write_bytes(b"a\n" * MAX_FILE_BYTES)
    with pytest.raises(OSError, match="has more than"):
        Tokens(path)

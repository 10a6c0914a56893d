"""Bearer tokens that admit, kept as digests only.

Floor 6. A token is random and long, so one SHA-256 is enough: there is nothing to guess that a slow hash would protect.
"""

import hashlib
import hmac
import re
from pathlib import Path

from server.transport.kept import Kept

_DIGEST = re.compile(r"(?:.*:)([0-9a-fA-F]{64})")
_TOKEN = re.compile(r"[!-~]+")
MAX_FILE_BYTES = 2**17
"""Every call is compared with every token: a list that is longer belongs into a proxy."""


class Tokens:
    """The tokens of one file, read again when it changes. Ownership: any thread."""

    def __init__(self, path: Path) -> None:
        """Raises: OSError for a file that cannot be read or understood."""
        self._kept = Kept([path], lambda: read_tokens(path))

    def admits(self, token: str) -> bool:
        """Whether this is one of them, in a time that says nothing about which, or how nearly."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        # a sum, and not `any`, which would stop at the first
        return sum(hmac.compare_digest(digest, known) for known in self._kept.get()) > 0


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """The digests of a file's tokens. One token a line, or `name:` and its SHA-256 in hex; empty lines and `#` are left out.

    Raises: OSError.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise OSError(f"tokens_file '{path}' cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise OSError(f"tokens_file '{path}' has more than {MAX_FILE_BYTES} bytes")
    digests = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if hashed := _DIGEST.fullmatch(text):
            digests.append(bytes.fromhex(hashed[1]))
        elif _TOKEN.fullmatch(text):
            digests.append(hashlib.sha256(text.encode()).digest())
        else:
            # without the line itself: it may be a secret, and errors are logged
            raise OSError(f"tokens_file '{path}': line {number} is neither a token nor 'name:' and 64 hex digits")
    return tuple(digests)

"""A version's `tokenizer.json`: texts of a batch to token ids. Floor 2: the one file that imports tokenizers.

The whole batch is one call into Rust, which lets go of the interpreter and uses every core. Never downloads anything, and never
pads: what a batch is padded to is decided after its lengths are known.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from server.core.errors import BackendFailed, InputsUnfit, LoadFailed
from server.core.tensors import Array

FILE = "tokenizer.json"


class Tokens:
    """One tokenizer with its truncation. Thread-safe: nothing of it changes after it was made.

    `most` is the largest number of tokens of a text, special ones included; what is beyond is cut off. `pad_id` is what fills a
    row, `left` whether in front of the text.
    """

    def __init__(self, path: Path, most: int, otherwise: int, most_bytes: int) -> None:
        """`most` 0: what the file says, or `otherwise` where it says nothing. Raises: LoadFailed."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            padding: dict[str, Any] = self._tokenizer.padding or {}
            self._tokenizer.no_padding()
            truncation: dict[str, Any] = self._tokenizer.truncation or {}
            self.most: int = most or truncation.get("max_length", otherwise)
            self._tokenizer.enable_truncation(**(truncation | {"max_length": self.most}))
            longest = len(self._tokenizer.encode_batch_fast(["a " * (self.most + 1)])[0])
        except Exception as error:  # noqa: BLE001 - tokenizers' exceptions have no base of their own
            raise LoadFailed(f"{FILE} is no tokenizer: {str(error)[:200]}") from None
        if longest > self.most:  # the library leaves texts as they are where not even its special tokens fit
            raise LoadFailed(f"{FILE} cannot cut texts to {self.most} tokens: set max_tokens in [text]")
        self.pad_id: int = padding.get("pad_id", 0)
        self.left: bool = padding.get("direction") == "left"
        self._most_bytes = most_bytes

    def encode(self, name: str, texts: Array) -> Sequence[Any]:
        """An encoding for each text: its `ids` and `type_ids`. `name`: of the input, for errors.

        Shapes: `texts` are bytes, in any shape. Raises: InputsUnfit naming the first row that is no text, or too long to look
        at; BackendFailed where the tokenizer fails.
        """
        decoded = [self._decoded(name, row, text) for row, text in enumerate(texts.reshape(-1).tolist())]
        try:
            found: Sequence[Any] = self._tokenizer.encode_batch_fast(decoded)
        except BaseException as error:
            # a panic in Rust arrives as a BaseException, and must not end the engine
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise BackendFailed(f"input '{name}' could not be tokenized: {str(error)[:200]}") from None
            raise
        return found

    def _decoded(self, name: str, row: int, text: bytes) -> str:
        if len(text) > self._most_bytes:
            raise InputsUnfit(f"input '{name}', row {row}: {len(text)} bytes; at most {self._most_bytes} are tokenized")
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise InputsUnfit(f"input '{name}', row {row}, is no UTF-8 text: {error.reason} at byte {error.start}") from None

"""Torch programs for tests: exported from modules, and changed record by record afterwards."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROWS = torch.export.Dim("rows", max=128)
Change = Callable[[dict[str, bytes]], None]


class Small(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here (pyproject: follow_imports)
    """Codes and numbers to probabilities: weights, a buffer, a constant, a dynamic first dimension."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.table = torch.nn.Parameter(torch.randn(10, 4, generator=generator))
        self.weight = torch.nn.Parameter(torch.randn(3, 6, generator=generator))
        self.register_buffer("shift", torch.tensor([0.5, -0.5, 0.0]))
        self.factor = torch.tensor([2.0])

    def forward(self, codes: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        embedded = torch.nn.functional.embedding(codes, self.table).flatten(1)
        row = torch.cat([embedded, numbers], dim=1)
        return torch.sigmoid(torch.nn.functional.linear(row, self.weight) * self.factor + self.shift)


SMALL_EXAMPLES = (torch.zeros((4, 1), dtype=torch.int64), torch.zeros((4, 2)))


def exported(module: Any, examples: Sequence[Any], dynamic: Any = None, *, decompose: bool = True, **extra: Any) -> bytes:
    """A module as the bytes of a program; `extra` are extra files, `podium` for podium.json."""
    files = {f"{name}.json": text for name, text in extra.items()}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), tuple(examples), dynamic_shapes=dynamic)
        program = program.run_decompositions({}) if decompose else program
        torch.export.save(program, buffer, extra_files=files)
    return buffer.getvalue()


@cache
def small(**extra: str) -> bytes:
    extras: dict[str, Any] = dict(extra)
    return exported(Small(), SMALL_EXAMPLES, ({0: ROWS}, {0: ROWS}), **extras)


def records(content: bytes) -> dict[str, bytes]:
    """Every record of an archive, without the folder they lie in."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def archived(found: dict[str, bytes], root: str = "archive", compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, record in found.items():
            archive.writestr(f"{root}/{name}", record)
    return buffer.getvalue()


def changed(content: bytes, change: Change) -> bytes:
    """The archive after a change to its records."""
    found = records(content)
    change(found)
    return archived(found)


def json_change(record: str, change: Callable[[Any], None]) -> Change:
    """A change to one record's parsed JSON."""

    def applied(found: dict[str, bytes]) -> None:
        parsed = json.loads(found[record])
        change(parsed)
        found[record] = json.dumps(parsed).encode()

    return applied


def write(folder: Path, content: bytes) -> Path:
    path = folder / "program.pt2"
    path.write_bytes(content)
    return path

"""Tables as libraries take them."""

# mypy: disable-error-code="import-untyped,import-not-found"

from typing import Any

import pandas as pd

from bench.drift.streams import Table


def frame(rows: Table) -> Any:
    """A pandas data frame: numbers `x0`, `x1`, …, and codes as texts `c0`, `c1`, …"""
    columns: dict[str, Any] = {f"x{index}": rows.numbers[:, index] for index in range(rows.numbers.shape[1])}
    columns |= {f"c{index}": rows.codes[:, index].astype(str) for index in range(rows.codes.shape[1])}
    return pd.DataFrame(columns)

"""Rows that Feast has written, for a batch: what can be no entity of Feast's is not found, and fails no other."""

from dataclasses import replace

import numpy as np

from feature_client.errors import EntityError
from feature_client.feast import FeastReader
from feature_client.feast_view import FeastView, feast_keys
from feature_client.schema import Columns, Status
from feature_client.served import Found, absent_rows


def read_feast(reader: FeastReader, view: FeastView, keys: Columns, rows: int, budget_s: float) -> Found:
    """The rows of N entities, within the budget. Shapes: keys `[N]`. Never raises for what a store or a caller does."""
    try:
        return reader.read(view, keys, budget_s)
    except EntityError:
        right = [at for at in range(rows) if _fits(reader.project, view, {name: keys[name][at : at + 1] for name in keys})]
    nowhere = absent_rows(view, rows, Status.NOT_FOUND)
    if not right:
        return nowhere
    return _placed(nowhere, reader.read(view, {name: column[right] for name, column in keys.items()}, budget_s), right)


def _fits(project: str, view: FeastView, keys: Columns) -> bool:
    try:
        feast_keys(project, view, keys)
    except EntityError:
        return False
    return True


def _placed(nowhere: Found, found: Found, right: list[int]) -> Found:
    """What was found, at the places of those it was found for."""
    for name, column in found.values.items():
        nowhere.values[name][right] = column
    missing = np.zeros(nowhere.nulls.shape, np.bool_)
    nowhere.nulls[right], nowhere.row_status[right] = found.nulls, found.row_status
    nowhere.event_us[right], nowhere.available_us[right] = found.event_us, found.available_us
    missing[right] = False if found.missing is None else found.missing
    return replace(nowhere, missing=missing)

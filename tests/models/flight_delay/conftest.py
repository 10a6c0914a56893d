from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]  # ships no annotations
import pytest

from models.flight_delay import build as recipe
from models.flight_delay import data
from models.flight_delay.build import BuildResult, build
from models.flight_delay.data import Flights
from models.flight_delay.history import History, load_history

Tables = dict[str, Any]


@pytest.fixture(scope="session")
def flights() -> Flights:
    return data.load()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """The model as it is shipped: the whole recipe takes seconds."""
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="session")
def histories() -> History:
    return load_history()


@pytest.fixture(scope="session")
def history_built(tmp_path_factory: pytest.TempPathFactory, histories: History) -> BuildResult:
    """The variant that is served from keys, as it is shipped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "load_history", lambda: histories)
        return build(tmp_path_factory.mktemp("history"), variant="history")


@pytest.fixture
def load_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tables], None]], Flights]:
    """Loads 400 real flights after a change to the tables they are read from."""
    tables = {name: pd.read_csv(data.folder() / name) for name in data.FILES}
    tables["flights.csv.zip"] = tables["flights.csv.zip"].iloc[100_000:100_400].reset_index(drop=True)
    monkeypatch.setattr(data, "folder", lambda: tmp_path)
    monkeypatch.setattr(data, "TOTAL_ROWS", 400)

    def load(change: Callable[[Tables], None]) -> Flights:
        changed = {name: table.copy() for name, table in tables.items()}
        change(changed)
        for name, table in changed.items():
            table.to_csv(tmp_path / name, index=False)
        return data.load()

    return load

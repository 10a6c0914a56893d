"""Definition files that tests write, and variations of them."""

from pathlib import Path

from feature_client.definitions import Definitions, load_definitions

HEAD = """
import enum
import functools
import re
import types
from dataclasses import dataclass

import numpy as np

from feature_client.aggregation import count, mean
from feature_client.schema import Entity, EventLog, Feature, days
from feature_client.view import feature_view
"""

BASE = (
    HEAD
    + '''
from helpers import scaled

TAIL = Entity("tail", {"tail": "int64"})
LOG = EventLog("flights", {"tail": "int64", "event_us": "int64", "delay": "float64", "unused": "bytes"})
LIMIT = 15.0


def clipped(values, low=-60.0, *, high=600.0):
    """Keep within."""
    return np.clip(values, low, high)


@feature_view(
    entity=TAIL,
    source=LOG,
    inputs={"n": count(days(1)), "delay": mean("delay", days(7))},
    features=[Feature("flights", "int32", 0, unit="flights"), Feature("ratio", "float32", float("nan"), max_age_us=5)],
    max_age_us=days(30),
)
def tail(n, delay):
    """Of one aircraft."""
    ratio = scaled(clipped(delay)) / LIMIT  # of the limit
    return {"flights": np.minimum(n, 1000).astype(np.int32), "ratio": ratio}
'''
)

HELPERS = """
import numpy as np

FACTOR = 1.0


def scaled(values):
    return inner(values) * 2


def inner(values):
    return values * FACTOR
"""


def written(folder: Path, text: str = BASE, helpers: str = HELPERS, name: str = "features.py") -> Path:
    """A definitions file, and `helpers.py` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "helpers.py").write_text(helpers, "utf-8")
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def loaded(folder: Path, text: str = BASE, helpers: str = HELPERS) -> Definitions:
    """What such files define."""
    return load_definitions([written(folder, text, helpers)])


def request_view(body: str, before: str = "") -> str:
    """A file with one view `v@1` of an input `x`, whose function has this body."""
    lines = "\n".join("    " + line for line in body.splitlines())
    return (
        f"{HEAD}\n{before}\n\n"
        '@feature_view(inputs={"x": "float64"}, features=[Feature("y", "float64", 0.0)])\n'
        f"def v(x):\n{lines}\n"
    )

"""Training sets from a million events for a million labels: how many labels a second, beside a join by event time alone.

Ours: counts and means over two windows and a last value, as known at each label's instant, with defaults and statuses. As an
orientation, in turns in the same run: `pandas.merge_asof` of the same labels with the newest event by event time, which is one
value, without windows, and knows of late events what nobody knew then; what it differs in is in the result.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # ships no types

from bench.record import machine, write
from feature_client.aggregation import RESOLUTION, count, last, mean
from feature_client.feature_set import Assembled, FeatureSet
from feature_client.point_in_time import training_set
from feature_client.schema import Array, Columns, Entity, EventLog, Feature, days, hours
from feature_client.view import feature_view

LABELS = EVENTS = 1_000_000
ENTITIES, SPAN_US = 100_000, days(30)
LATE_SHARE, LATE_US = 0.2, hours(1)
_TURNS, _CHECKED = 7, 2_000
REQUIRED_LABELS_PER_S = 0.5e6
_SHORT, _LONG = hours(24), days(7)

ACCOUNT = Entity("account", {"account": "int64"})
PAYMENTS = EventLog(
    "payments",
    {"account": "int64", "event_us": "int64", "created_us": "int64", "amount": "float64"},
    created_time="created_us",
)


@feature_view(
    entity=ACCOUNT,
    source=PAYMENTS,
    inputs={
        "count_short": count(_SHORT),
        "count_long": count(_LONG),
        "mean_short": mean("amount", _SHORT),
        "mean_long": mean("amount", _LONG),
        "latest": last("amount"),
    },
    features=[
        Feature("payments_short", "float32", 0),
        Feature("payments_long", "float32", 0),
        Feature("amount_short", "float64", 0),
        Feature("amount_long", "float64", 0),
        Feature("amount_latest", "float64", -1),
    ],
)
def account(count_short: Array, count_long: Array, mean_short: Array, mean_long: Array, latest: Array) -> Mapping[str, Array]:
    """What an account has paid of late."""
    return {
        "payments_short": count_short.astype(np.float32),
        "payments_long": count_long.astype(np.float32),
        "amount_short": mean_short,
        "amount_long": mean_long,
        "amount_latest": latest,
    }


def history(rng: np.random.Generator) -> tuple[dict[str, Array], Array, dict[str, Array]]:
    """Events as logged, the labels' instants, and their keys: numbers all over int64, as hashes are."""
    accounts = rng.integers(-(2**63), 2**63 - 1, ENTITIES)
    event_us = np.sort(rng.integers(0, SPAN_US, EVENTS))
    late_us = np.where(rng.random(EVENTS) < LATE_SHARE, rng.integers(1, LATE_US, EVENTS), 0)
    events = {
        "account": accounts[rng.integers(0, ENTITIES, EVENTS)],
        "event_us": event_us,
        "created_us": event_us + late_us,
        "amount": np.round(rng.lognormal(3, 1, EVENTS), 2),
    }
    return events, rng.integers(0, SPAN_US, LABELS), {"account": accounts[rng.integers(0, ENTITIES, LABELS)]}


def by_event_time(events: Columns, as_of_us: Array, keys: Columns) -> Array:
    """The amount of each label's newest event, -1 where there is none, as pandas joins it."""
    left = pd.DataFrame({"account": keys["account"], "at": as_of_us, "row": np.arange(LABELS)}).sort_values("at")
    right = pd.DataFrame({name: events[name] for name in ("account", "event_us", "amount")})
    joined = pd.merge_asof(left, right, left_on="at", right_on="event_us", by="account")
    amounts = np.empty(LABELS)
    amounts[joined["row"].to_numpy()] = joined["amount"].fillna(-1).to_numpy()
    return amounts


def wrong_labels(made: Assembled, events: Columns, as_of_us: Array, keys: Columns, chosen: Array) -> int:
    """How many of some labels differ in a bit from what loops over the account's events give."""
    order = np.argsort(events["account"], kind="stable")
    accounts = events["account"][order]
    wrong = 0
    for label in chosen.tolist():
        begin, end = (int(np.searchsorted(accounts, keys["account"][label], side)) for side in ("left", "right"))
        known = [at for at in order[begin:end].tolist() if events["created_us"][at] <= as_of_us[label]]
        wanted = [0.0, 0.0, 0.0, 0.0, -1.0]
        if known:
            newest = max(known, key=lambda at: (int(events["event_us"][at]), int(events["created_us"][at]), at))
            counts, means = [], []
            for window_us in (_SHORT, _LONG):
                within = [at for at in known if events["event_us"][at] > events["event_us"][newest] - window_us]
                counts.append(float(len(within)))
                means.append(sum(round(float(events["amount"][at]) / RESOLUTION) for at in within) * RESOLUTION / len(within))
            wanted = [*counts, *means, float(events["amount"][newest])]
        wrong += [float(made.values[name][label]) for name in account.names] != wanted
    return wrong


def main() -> int:
    """Run, print, write bench/results/features_builder.json. Exit status 1 if it is too slow, or anything differs."""
    facts = machine()
    rng = np.random.default_rng(42)
    events, as_of_us, keys = history(rng)
    features = FeatureSet([account])
    ours, theirs = [], []
    for _ in range(_TURNS):
        begin = time.perf_counter()
        made = training_set(features, {"payments": events}, as_of_us, keys)
        ours.append(LABELS / (time.perf_counter() - begin))
        begin = time.perf_counter()
        amounts = by_event_time(events, as_of_us, keys)
        theirs.append(LABELS / (time.perf_counter() - begin))
    wrong = wrong_labels(made, events, as_of_us, keys, rng.choice(LABELS, _CHECKED, replace=False))
    row: dict[str, Any] = {
        "labels": LABELS,
        "events": EVENTS,
        "entities": ENTITIES,
        "late_share": LATE_SHARE,
        "labels_per_s": statistics.median(ours),
        "labels_per_s_min_max": [min(ours), max(ours)],
        "required_labels_per_s": REQUIRED_LABELS_PER_S,
        "pandas": pd.__version__,
        "merge_asof_labels_per_s": statistics.median(theirs),
        "merge_asof_differs_share": float(np.mean(amounts != made.values["amount_latest"])),
        "checked": _CHECKED,
        "wrong": wrong,
    }
    print(
        f"{row['labels_per_s'] / 1e6:.2f} M labels/s (required {REQUIRED_LABELS_PER_S / 1e6:.2f}), {wrong} of {_CHECKED} differ"
        f" from loops; merge_asof by event time alone {row['merge_asof_labels_per_s'] / 1e6:.2f} M/s, and"
        f" {row['merge_asof_differs_share']:.1%} of its values were not known then"
    )
    print(write("features_builder", {"machine": facts, "turns": _TURNS, "rows": [row]}))
    return int(row["labels_per_s"] < REQUIRED_LABELS_PER_S or wrong > 0)

"""The alert rules of deploy/prometheus: valid, about metrics and labels that a scrape has, and explained in the runbook.

That they fire when they should is what podium-monitoring.test.yml says, which `make rules` runs where there is a promtool.
"""

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.telemetry.metrics import Metrics
from server.telemetry.monitoring_families import STATES
from server.telemetry.monitoring_readings import Objective
from server.telemetry.recorder import OUTCOMES
from tests import verdicts

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "podium-monitoring.rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
CASES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "podium-monitoring.test.yml").read_text("utf-8"))["tests"]
TARGET = {"job", "instance"}
"""What Prometheus itself adds to every sample."""
VALUES = {"state": set(STATES), "outcome": set(OUTCOMES), "bound": {"value", "low", "high", "at_least", "at_most"}}
"""Labels of which all values are known."""


def scraped() -> dict[str, set[str]]:
    """The labels of every sample of a scrape, by its name."""
    metrics = Metrics(
        build="1",
        queues=lambda key: None,
        monitoring=verdicts.every_family,
        objectives=lambda: {verdicts.KEY: Objective("auc", "at_least", 0.75)},
    )
    metrics.add(verdicts.KEY)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


class Selectors:
    """All selectors of an expression."""

    def __init__(self, expression: Any) -> None:
        self.found: list[Any] = []
        self._visit(expression)

    def _visit(self, node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            self.found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            self.found.append(node.vector_selector)
        for name in ("expr", "lhs", "rhs", "param"):
            if (child := getattr(node, name, None)) is not None:
                self._visit(child)
        for argument in getattr(node, "args", ()):
            self._visit(argument)


def test_there_is_a_rule_for_each_alert_once() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names)) == 8


def test_harm_alone_pages() -> None:
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in RULES}
    assert [name for name, severity in severities.items() if severity == "page"] == ["PodiumRiskAlarm"]
    assert set(severities.values()) == {"page", "ticket", "warning"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_expressions_are_about_what_a_scrape_has(rule: dict[str, Any]) -> None:
    known = scraped()
    selectors = Selectors(promql_parser.parse(rule["expr"])).found
    assert selectors
    for selector in selectors:
        assert selector.name in known
        for matcher in selector.matchers.matchers:
            assert matcher.name in known[selector.name]
            assert matcher.value in VALUES.get(matcher.name, {matcher.value})
    labels = set().union(*(known[selector.name] for selector in selectors)) | TARGET
    kept = re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"])
    assert {label.strip() for names in kept for label in names.split(",")} <= labels
    told = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
    assert set(told) <= labels


def test_raw_distances_raise_no_alert() -> None:
    used = {selector.name for rule in RULES for selector in Selectors(promql_parser.parse(rule["expr"])).found}
    assert not [name for name in used if "psi" in name or "p_log10" in name]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_leads_to_its_section_of_the_runbook(rule: dict[str, Any]) -> None:
    assert set(rule["annotations"]) == {"summary", "description"}
    assert f"See {rule['alert']} in docs/RUNBOOK.md." in " ".join(rule["annotations"]["description"].split())
    assert re.search(rf"^### {rule['alert']}$", (ROOT / "docs" / "RUNBOOK.md").read_text("utf-8"), re.MULTILINE)


def test_every_alert_has_a_case() -> None:
    cases = str(CASES)
    assert [rule["alert"] for rule in RULES if rule["alert"] not in cases] == []
    known = scraped()
    series = [each["series"] for case in CASES for each in case["input_series"]]
    for one in series:
        (selector,) = Selectors(promql_parser.parse(one)).found
        assert {matcher.name for matcher in selector.matchers.matchers} <= known[selector.name] | TARGET

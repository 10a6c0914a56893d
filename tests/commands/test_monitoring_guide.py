"""What docs/MONITORING.md shows is what is printed, and its example by hand comes out."""

import doctest
import re
from pathlib import Path

import yaml

from server.commands.drift_text import lines
from server.monitoring.reading import MonitoringReading
from server.monitoring.verdict import DriftState
from server.transport.drift_reading import reading_from
from server.transport.drift_report import report_of
from tests import verdicts

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "MONITORING.md").read_text("utf-8")


def printed() -> list[str]:
    reading = MonitoringReading((verdicts.version(verdicts.alarming(0)),))
    (version,) = reading_from(report_of(reading, "ranker", "", 1))
    return list(lines(version, every=True))


def test_the_example_by_hand_comes_out() -> None:
    example = doctest.DocTestParser().get_doctest(GUIDE, {}, "guide", "docs/MONITORING.md", 0)
    result = doctest.DocTestRunner().run(example)
    assert (result.failed, result.attempted > 10) == (0, True)


def test_the_verdict_that_is_shown_is_the_one_that_is_recomputed() -> None:
    found = re.search(r"^```\n(ranker:3 .*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    assert found
    assert [line for line in found[1].splitlines() if line not in printed()] == []
    finding = verdicts.alarming(0).findings[0]
    for number in (round(finding.effect, 4), f"{finding.p:.3g}", f"{finding.e:.3g}", round(finding.log_detector, 3)):
        assert f"\n{number!r}\n" in GUIDE


def test_every_state_is_explained() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| .+ \|$", GUIDE, re.MULTILINE)) >= set(DriftState)


def test_alerts_have_the_severities_that_are_stated() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "podium-monitoring.rules.yml").read_text("utf-8"))
    has = {rule["alert"]: rule["labels"]["severity"] for group in rules["groups"] for rule in group["rules"]}
    told: dict[str, str] = {}
    for names, severity in re.findall(r"^\| ((?:`Podium\w+`(?:, )?)+) \| (\w+) \|", GUIDE, re.MULTILINE):
        told |= dict.fromkeys(re.findall(r"`(\w+)`", names), severity)
    assert told == has

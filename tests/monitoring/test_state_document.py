"""What monitors remember, as bytes: what was packed comes back, and nothing else is believed."""

import json
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from server.core.versions import VersionKey
from server.monitoring.framing import framed, number, text
from server.monitoring.judge import Detectors
from server.monitoring.monitor import Memory, Monitor
from server.monitoring.state_document import FORMAT, MAGIC, Packer, Saved, judged_by, unpack
from server.monitoring.verdict import WindowVerdict
from tests.monitoring.monitored import HOUR_US, KEY, T0_US, normal_baseline, normal_rows, settings

FAR = T0_US + 1000 * HOUR_US


def remembered() -> Memory:
    made = Monitor(KEY, "champion", settings())
    made.compare_with(normal_baseline(5000, 2))
    for hour, rows in enumerate((300, 300, 20, 300, 30)):
        made.tick(T0_US + hour * HOUR_US)
        made.add(normal_rows(T0_US + hour * HOUR_US, rows, 2, seed=hour, shift=2.0 if hour == 1 else 0.0), FAR)
    made.tick(T0_US + 6 * HOUR_US - 1)
    made.add(normal_rows(T0_US + 6 * HOUR_US, 40, 2, seed=9), FAR)
    return made.memory


def packed(memory: Memory) -> bytes:
    saved = Saved(KEY, judged_by(settings().monitoring), "17-0", {"champion": memory})
    return Packer().pack([saved])[KEY]


def test_what_was_packed_comes_back() -> None:
    memory = remembered()
    assert memory.windows.waiting is not None
    saved = unpack(packed(memory))
    assert (saved.key, saved.position, list(saved.arms)) == (KEY, "17-0", ["champion"])
    found = saved.arms["champion"]
    assert list(found.verdicts) == list(memory.verdicts)
    assert found.last_alarm in found.verdicts
    assert (found.detectors, found.state, found.alarms) == (memory.detectors, memory.state, 1)
    assert packed(found) == packed(memory)


def test_what_was_judged_and_not_told_is_told_afterwards() -> None:
    made = Monitor(KEY, "champion", settings(time_input="at", window_s=1))
    made.compare_with(normal_baseline(5000, 2))
    for second in range(200):
        made.add(normal_rows(T0_US + second * 1_000_000, 50, 2, seed=second), FAR)
    assert len(made.memory.untold) > 2
    other = Monitor(KEY, "champion", made.settings, unpack(packed(made.memory)).arms["champion"])
    assert other.tick(FAR) == made.tick(FAR)
    assert (other.tick(FAR), made.tick(FAR)) == ([], [])


def test_verdicts_and_baselines_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, packer = remembered(), Packer()
    saved = Saved(KEY, "", "", {"champion": memory})
    first = packer.pack([saved])
    seen: list[object] = []
    monkeypatch.setattr("server.monitoring.state_document._listed", seen.append)
    monkeypatch.setattr("server.monitoring.state_document.to_document", seen.append)
    assert packer.pack([saved]) == first
    assert seen == []


def test_a_verdict_that_is_another_object_is_packed_anew() -> None:
    memory, packer = remembered(), Packer()
    saved = Saved(KEY, "", "", {"champion": memory})
    packer.pack([saved])
    changed: WindowVerdict = replace(memory.verdicts[0], rows=12_345)
    memory.verdicts[0] = changed
    assert unpack(packer.pack([saved])[KEY]).arms["champion"].verdicts[0] == changed


def fewer_detectors(memory: Memory) -> None:
    memory.detectors = Detectors(memory.detectors.logs[1:])


def unknown_lasting(memory: Memory) -> None:
    memory.detectors = replace(memory.detectors, lasting=(99,))


def other_cells(memory: Memory) -> None:
    next(iter(memory.windows.open.values())).counts = np.zeros(3, dtype=np.int64)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(fewer_detectors, "7 detectors and not 8"), (unknown_lasting, "8 detectors"), (other_cells, "3 cells and not")],
)
def test_parts_that_do_not_fit_each_other_are_refused(spoil: Callable[[Memory], None], says: str) -> None:
    memory = remembered()
    spoil(memory)
    with pytest.raises(ValueError, match=says):
        unpack(packed(memory))


def blob(data: bytes) -> bytes:
    return number("Q", len(data)) + data


def by_hand(*arm: bytes) -> bytes:
    head = text("m") + number("Q", 1) + text("") + text("") + number("I", 1) + text("champion")
    return framed(MAGIC, FORMAT, [head, *arm])


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ((blob(zlib.compress(b"{}")), blob(b""), number("I", 0)), "not what they must be: KeyError"),
        ((blob(zlib.compress(b"7")), blob(b""), number("I", 0)), "not what they must be: TypeError"),
        ((blob(zlib.compress(b"{")),), "Expecting"),
        ((blob(b"no zlib"),), "not what they must be"),
        ((blob(zlib.compress(json.dumps("x" * 500).encode())[:-6]),), "cut off"),
        ((number("Q", 10**6),), "ends within a field"),
    ],
)
def test_documents_that_somebody_else_wrote_are_refused(arm: tuple[bytes, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        unpack(by_hand(*arm))


def test_settings_that_nothing_is_judged_by_do_not_matter() -> None:
    assert judged_by(settings(target_rows=5).monitoring) == judged_by(settings().monitoring)
    assert judged_by(settings(tolerance=0.5).monitoring) != judged_by(settings().monitoring)
    assert Packer().pack([Saved(VersionKey("a", 1), "", "", {})])

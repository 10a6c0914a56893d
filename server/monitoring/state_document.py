"""What monitors remember, as bytes and back, exact to the bit. **Pure.**

Floor 4. One document for each version: its windows, detectors, verdicts, the baseline or the rows that are being learnt from,
and how far the stream was read that the rows came from. Going on from a document is the same as never having stopped.
"""

import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from server.core.monitoring_settings import ModelMonitoring
from server.core.versions import VersionKey
from server.monitoring.baseline_document import from_document, to_document
from server.monitoring.codec import decode, encode
from server.monitoring.framing import Fields, framed, number, text
from server.monitoring.judge import Detectors, Reference
from server.monitoring.monitor import Memory
from server.monitoring.reading import KEPT_WINDOWS
from server.monitoring.streams import Counts
from server.monitoring.verdict import DriftState, Finding, WindowVerdict
from server.monitoring.windows import Closed, Open, Windows

MAGIC, FORMAT = b"PdMo", 1
_MAX_BYTES = 512 * 2**20
"""Of one part, unpacked."""
_JUDGED_BY = ("window_s", "grace_s", "min_rows", "tolerance", "alarm_every_windows", "time_input")


def judged_by(settings: ModelMonitoring) -> str:
    """The settings that windows and detectors depend on: under others they are begun anew."""
    return json.dumps([getattr(settings, name) for name in _JUDGED_BY])


@dataclass(slots=True)
class Saved:
    """One version's document. `position`: how far the stream was read, in its reader's words."""

    key: VersionKey
    judged_by: str
    position: str
    arms: dict[str, Memory]


@dataclass(slots=True)
class Packer:
    """Packs what does not change once: baselines and verdicts, known by identity while they are kept. Used by one thread."""

    _packed: dict[int, tuple[object, bytes]] = field(default_factory=dict)

    def pack(self, saved: Iterable[Saved]) -> dict[VersionKey, bytes]:
        """The documents of all versions; what is not among them is forgotten."""
        before, self._packed = self._packed, {}
        made = {}
        for each in saved:
            made[each.key] = framed(MAGIC, FORMAT, self._fields(each, before))
        return made

    def _fields(self, saved: Saved, before: Mapping[int, tuple[object, bytes]]) -> Iterator[bytes]:
        yield text(saved.key.model) + number("Q", saved.key.version) + text(saved.judged_by) + text(saved.position)
        yield number("I", len(saved.arms))
        for arm, memory in saved.arms.items():
            yield text(arm)
            yield _blob(_json(_remembered(memory)))
            yield _blob(b"" if memory.baseline is None else self._once(memory.baseline, before))
            yield number("I", len(memory.learned))
            yield from (_blob(encode(each)) for each in memory.learned)
            counts = [window.counts for window in memory.windows.open.values()]
            counts.append(memory.windows.waiting.counts if memory.windows.waiting else None)
            yield from (_blob(b"" if each is None else each.astype("<i8").tobytes()) for each in counts)
            verdicts = [*memory.verdicts, *([memory.last_alarm] if memory.last_alarm else [])]
            yield number("I", len(verdicts))
            yield from (_blob(self._once(verdict, before)) for verdict in verdicts)

    def _once(self, value: Any, before: Mapping[int, tuple[object, bytes]]) -> bytes:
        known = before.get(id(value))
        if known is None or known[0] is not value:
            data = _json(_listed(value)) if isinstance(value, WindowVerdict) else zlib.compress(to_document(value), 1)
            known = value, data
        self._packed[id(value)] = known
        return known[1]


def unpack(data: bytes) -> Saved:
    """The version of a document. Raises: ValueError for whatever `Packer` did not write."""
    read = Fields(data, MAGIC, FORMAT)
    try:
        saved = Saved(VersionKey(read.text(), read.integer("Q")), read.text(), read.text(), {})
        for _ in range(read.integer("I")):
            arm = read.text()
            saved.arms[arm] = _memory(read)
        read.end()
    except (KeyError, TypeError, AttributeError, IndexError, zlib.error) as error:
        raise ValueError(f"its parts are not what they must be: {type(error).__name__} {error}") from None
    return saved


def _memory(read: Fields) -> Memory:
    table = json.loads(_taken(read))
    packed = read.take(read.integer("Q"))
    baseline = from_document(_unpacked(packed)) if packed else None
    learned = [decode(bytes(read.take(read.integer("Q")))) for _ in range(read.integer("I"))]
    size = None if baseline is None else baseline.layout.size
    windows = Windows(**{**table["windows"], "unplaced": tuple(table["windows"]["unplaced"])})
    windows.open = {
        start: Open(rows, offered, dropped, latest_us, _counts(read, size))
        for start, rows, offered, dropped, latest_us in table["open"]
    }
    counts = _counts(read, size)
    if table["waiting"] is not None:
        start_us, end_us, rows, offered, dropped = table["waiting"]
        windows.waiting = Closed(start_us, end_us, rows, offered, dropped, counts)
    verdicts = [_verdict(json.loads(_taken(read))) for _ in range(read.integer("I"))]
    last_alarm = verdicts.pop() if table["alarms"] else None
    if last_alarm in verdicts:
        last_alarm = verdicts[verdicts.index(last_alarm)]
    detectors = Detectors(tuple(map(float, table["logs"])), tuple(table["lasting"]))
    expected = 0 if baseline is None else len(Reference(baseline, 0.1, 10).places)
    if len(detectors.logs) != expected or any(not 0 <= place < expected for place in detectors.lasting):
        raise ValueError(f"it has {len(detectors.logs)} detectors and not {expected}")
    return Memory(
        windows=windows,
        baseline=baseline,
        detectors=detectors,
        learned=learned,
        learned_rows=table["learned_rows"],
        refused=table["refused"],
        state=DriftState(table["state"]),
        verdicts=deque(verdicts, maxlen=KEPT_WINDOWS),
        untold=verdicts[: table["untold"]][::-1],
        alarms=table["alarms"],
        last_alarm=last_alarm,
    )


_PLAIN = ("window_us", "grace_us", "min_rows", "by_rows", "frontier_us", "reached_us", "late_rows", "misdated_rows", "unplaced")


def _remembered(memory: Memory) -> dict[str, Any]:
    windows, waiting = memory.windows, memory.windows.waiting
    return {
        "windows": {name: getattr(windows, name) for name in _PLAIN},
        "open": [[start, each.rows, each.offered, each.dropped, each.latest_us] for start, each in windows.open.items()],
        "waiting": waiting and [waiting.start_us, waiting.end_us, waiting.rows, waiting.offered, waiting.dropped],
        "logs": memory.detectors.logs,
        "lasting": memory.detectors.lasting,
        "learned_rows": memory.learned_rows,
        "refused": memory.refused,
        "state": memory.state,
        "alarms": memory.alarms,
        "untold": min(len(memory.untold), len(memory.verdicts)),
    }


_VERDICT = tuple(each.name for each in fields(WindowVerdict) if each.name not in ("key", "findings"))
_FINDING = tuple(each.name for each in fields(Finding))


def _listed(verdict: WindowVerdict) -> dict[str, Any]:
    table = {name: getattr(verdict, name) for name in _VERDICT}
    findings = [[getattr(finding, name) for name in _FINDING] for finding in verdict.findings]
    return table | {"key": verdict.key, "findings": findings}


def _verdict(table: dict[str, Any]) -> WindowVerdict:
    made = []
    for values in table["findings"]:
        named = dict(zip(_FINDING, values, strict=True))
        named |= {"baseline": tuple(named["baseline"]), "window": tuple(named["window"])}
        made.append(Finding(**named))
    plain: dict[str, Any] = {name: table[name] for name in _VERDICT}
    plain |= {"state": DriftState(table["state"]), "alarmed": tuple(table["alarmed"])}
    return WindowVerdict(**plain, key=VersionKey(*table["key"]), findings=tuple(made))


def _json(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def _blob(data: bytes) -> bytes:
    return number("Q", len(data)) + data


def _taken(read: Fields) -> bytes:
    return _unpacked(read.take(read.integer("Q")))


def _unpacked(data: "bytes | memoryview") -> bytes:
    unpacker = zlib.decompressobj()
    made = unpacker.decompress(data, _MAX_BYTES)
    if not unpacker.eof:
        raise ValueError("one of its parts is cut off, or too large")
    return made


def _counts(read: Fields, size: int | None) -> Counts | None:
    data = read.take(read.integer("Q"))
    if not data:
        return None
    counts = np.frombuffer(data, "<i8").astype(np.int64)
    if len(counts) != size:
        raise ValueError(f"a window has {len(counts)} cells and not {size}")
    return counts

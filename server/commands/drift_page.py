"""A report as one HTML page that needs nothing else: no scripts, no requests, pictures inside. **Pure.**

Floor 7, for `podium drift --html`. Every text that came from a server is escaped, and a policy in the page forbids whatever an
escape might have missed.
"""

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from server.commands.drift_moved import bin_names, moved
from server.commands.drift_text import in_words, lines, worst_first
from server.monitoring.verdict import Finding
from server.transport.drift_reading import ReportedVersion

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff }
body { max-width: 1180px; margin: 24px auto; padding: 0 20px }
h1 { font-size: 24px } h2 { font-size: 20px; margin-top: 36px; border-top: 1px solid #ccc; padding-top: 20px }
.state { display: inline-block; padding: 2px 10px; border-radius: 4px; border: 2px solid #555; font-weight: 600 }
.state.alarm { border-color: #D55E00; background: #fdeee4 } .state.ok { border-color: #009E73; background: #e8f6f1 }
.state.degraded { border-color: #E69F00; background: #fdf5e3 } .state.learning, .state.no_data { background: #eee }
pre { background: #f6f6f6; padding: 12px; overflow-x: auto; font-size: 13px }
table { border-collapse: collapse; font-size: 13px; margin: 12px 0 }
th, td { border-bottom: 1px solid #ddd; padding: 3px 10px; text-align: right; vertical-align: top; white-space: nowrap }
th:last-child { text-align: left }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left } tr.alarm td { background: #fdeee4 }
td.name { min-width: 150px; max-width: 280px; overflow-wrap: anywhere; white-space: normal }
td.moved { text-align: left; min-width: 300px; white-space: normal }
img { max-width: 100%; height: auto; display: block; margin: 16px 0 } summary { cursor: pointer }
"""
_OPEN = 20
"""Checks that are shown without a click."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of one version. `file_name`: fit for any folder. `title`: what it shows, for those who do not see it."""

    file_name: str
    title: str
    png: bytes


def page(versions: Sequence[tuple[ReportedVersion, Sequence[Picture]]]) -> str:
    """The page about all of these versions."""
    models = ", ".join(dict.fromkeys(version.reading.key.model for version, _ in versions))
    body = "\n".join(line for version, pictures in versions for line in _version(version, pictures))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>Drift of {html.escape(models)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>Drift of {html.escape(models)}</h1>\n{body}\n</body></html>\n"
    )


def _version(version: ReportedVersion, pictures: Sequence[Picture]) -> Iterator[str]:
    reading = version.reading
    name = html.escape(f"{reading.key.model}:{reading.key.version}, {reading.arm}")
    yield f'<h2>{name} <span class="state {reading.state.value}">{reading.state.value}</span></h2>'
    yield f"<p>{html.escape(in_words(reading))}</p>"
    for picture in pictures:
        data = base64.b64encode(picture.png).decode()
        yield f'<img alt="{html.escape(picture.title)}" src="data:image/png;base64,{data}">'
    if reading.windows and reading.windows[0].findings:
        yield from _findings(version, reading.windows[0].findings)
    text = "\n".join(lines(version, every=True))
    yield f"<details><summary>The same as text</summary><pre>{html.escape(text)}</pre></details>"


def _findings(version: ReportedVersion, findings: Sequence[Finding]) -> Iterator[str]:
    order = worst_first(findings)
    yield "<p>The checks of the last window, the most evidence first. Detectors are logarithms.</p>"
    yield from _table(version, order[:_OPEN])
    if len(order) > _OPEN:
        yield f"<details><summary>{len(order) - _OPEN} checks with less evidence</summary>"
        yield from _table(version, order[_OPEN:])
        yield "</details>"


def _table(version: ReportedVersion, findings: Sequence[Finding]) -> Iterator[str]:
    heads = ("stream", "check", "effect", "tolerated", "n", "m", "p", "e", "detector", "alarm from", "what moved")
    yield f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"
    for finding in findings:
        numbers = (finding.effect, finding.tolerated, finding.n, finding.m, finding.p, finding.e)
        detector = (finding.log_detector, finding.log_threshold)
        cells = "".join(f"<td>{number:.4g}</td>" if isinstance(number, float) else f"<td>{number}</td>" for number in numbers)
        cells += "".join(f"<td>{number:.3f}</td>" for number in detector)
        said = html.escape(moved(finding, version.streams.get(finding.stream)))
        yield (
            f'<tr class="{"alarm" if finding.alarm else "calm"}"><td class="name">{html.escape(finding.stream)}</td>'
            f'<td>{finding.check}</td>{cells}<td class="moved">{said}{_counts(version, finding)}</td></tr>'
        )
    yield "</table>"


def _counts(version: ReportedVersion, finding: Finding) -> str:
    """The counts that the numbers are found from, where somebody wants to see them."""
    names = (
        bin_names(finding, version.streams.get(finding.stream))
        if finding.check == "distribution"
        else ["others", finding.check]
    )
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{was}</td><td>{now}</td></tr>"
        for name, was, now in zip(names, finding.baseline, finding.window, strict=True)
    )
    heads = "<tr><th>bin</th><th>baseline</th><th>window</th></tr>"
    return f'<details><summary>counts</summary><table class="counts">{heads}{rows}</table></details>'

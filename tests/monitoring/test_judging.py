"""The sink that judges: what comes goes to the monitors and to the outcomes, and is judged and kept in time."""

from typing import Any

from server.monitoring.judging import Judging
from tests.monitoring.sampled import KEY, samples_of


class Books:
    """Monitors and outcomes that write down what they are told."""

    def __init__(self) -> None:
        self.now_us = 10**15
        self.said: list[Any] = []
        self.verdicts: list[Any] = []

    def add(self, samples: Any) -> None:
        self.said.append(("add", [each.rows for each in samples]))

    def count(self, *what: Any) -> None:
        self.said.append(("count", *what))

    def tick(self, now_us: int) -> list[Any]:
        self.said.append(("tick", now_us))
        return self.verdicts

    def readings(self) -> tuple[str, ...]:
        return ("quality",)

    def act(self, verdicts: Any, qualities: Any, now_us: int) -> None:
        self.said.append(("act", verdicts, qualities, now_us))

    def save(self) -> None:
        self.said.append("save")

    def judging(self) -> Judging:
        books: Any = self
        return Judging(books, books, self.act, self.save, lambda: self.now_us)


def test_what_comes_is_put_together_and_told_to_both() -> None:
    books = Books()
    sink = books.judging()
    sink.write([samples_of(2), samples_of(3, 2)])
    sink.lost(KEY, "champion", 7, 60_000_000)
    assert books.said == [("add", [5]), ("add", [5]), ("count", KEY, "champion", 7, 7, 60_000_000)]


def test_once_a_second_it_is_judged_and_whoever_acts_is_told() -> None:
    books = Books()
    sink = books.judging()
    for _ in range(3):
        sink.idle()
        books.now_us += 400_000
    # 0.0 s; 0.4 and 0.8 s are too early
    now_us = 10**15
    assert books.said == [("tick", now_us), ("tick", now_us), ("act", [], ("quality",), now_us)]
    sink.idle()
    assert books.said[3] == ("tick", now_us + 1_200_000)


def test_it_keeps_what_it_found_at_once_and_the_rest_every_minute_and_at_the_end() -> None:
    books = Books()
    sink = books.judging()
    books.verdicts = ["verdict"]
    sink.idle()
    assert books.said.count("save") == 1
    books.verdicts = []
    for _ in range(61):
        books.now_us += 1_000_000
        sink.idle()
    assert books.said.count("save") == 2
    sink.close()
    assert books.said.count("save") == 3

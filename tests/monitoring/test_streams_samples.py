"""Where cells are in a vector of counts, and rows as they travel."""

import numpy as np
import pytest

from server.monitoring.samples import together
from server.monitoring.streams import Category, Layout, Numeric
from tests.monitoring.plain_rows import rows_of, texts

NUMBER = Numeric("x", "input", (1.0, 2.0), 0.0, 3.0, (0.0, 3.0), 1.5, 1.0)
TEXT = Category("t", "feature", ("a", "b"), (7,))


def test_streams_lie_one_behind_the_other() -> None:
    layout = Layout((NUMBER, TEXT))
    assert (NUMBER.bins, NUMBER.width, TEXT.bins, TEXT.width) == (3, 10, 3, 5)
    assert (layout.size, layout.slices) == (15, (slice(0, 10), slice(10, 15)))
    assert layout.empty().tolist() == [0] * 15
    assert list(layout) == [(0, NUMBER), (1, TEXT)]
    assert Layout(()).size == 0


def test_cells_are_views_and_add_up() -> None:
    layout = Layout((NUMBER, TEXT))
    counts = np.arange(15, dtype=np.int64)
    number, text = layout.cells(counts, 0), layout.cells(counts, 1)
    assert (number.bins.tolist(), number.sums.tolist()) == ([0, 1, 2], [7, 8, 9])
    assert (number.missing, number.non_finite, number.below, number.above, number.unseen) == (3, 4, 5, 6, 0)
    assert (number.present, number.rows) == (3, 10)
    assert (text.bins.tolist(), text.unseen, text.missing, text.sums.tolist()) == ([10, 11, 12], 13, 14, [])
    assert (text.present, text.rows) == (46, 60)
    number.bins[0] = 99
    assert counts[0] == 99


def test_bytes_of_samples_count_texts_by_their_length() -> None:
    plain = rows_of({"x": np.ones((2, 3), dtype=np.float32)})
    with_texts = rows_of({"x": np.ones((2, 3), dtype=np.float32), "t": texts(b"12345", None)})
    assert plain.nbytes == 24 + 2 * (8 + 8 + 4 + 8 + 8 + 8)
    assert with_texts.nbytes == plain.nbytes + 2 * 8 + 5


@pytest.mark.parametrize("chosen", [np.array([2, 0]), slice(1, 3)])
def test_a_part_has_its_rows_of_every_array(chosen: "np.ndarray[tuple[int], np.dtype[np.intp]] | slice") -> None:
    whole = rows_of({"x": np.arange(4.0)[:, None]}, {"y": np.arange(4.0)}, time_us=np.arange(4))
    part = whole.part(chosen)
    wanted = np.arange(4)[chosen].tolist()
    assert part.inputs["x"].ravel().tolist() == wanted
    assert part.outputs["y"].tolist() == part.time_us.tolist() == part.id_hash.tolist() == wanted
    assert part.rows == 2
    assert (part.key, part.features) == (whole.key, whole.features)


def test_pieces_of_a_kind_become_one_and_keep_their_order() -> None:
    pieces = [
        rows_of({"x": np.array([[1.0]])}),
        rows_of({"x": np.array([[9.0]])}, arm="challenger"),
        rows_of({"x": np.array([[2.0], [3.0]])}),
        rows_of({"x": np.array([[4.0, 5.0]])}),
    ]
    made = together(pieces)
    assert [(one.arm, one.inputs["x"].tolist()) for one in made] == [
        ("challenger", [[9.0]]),
        ("champion", [[1.0], [2.0], [3.0]]),
        ("champion", [[4.0, 5.0]]),
    ]
    assert together([]) == []

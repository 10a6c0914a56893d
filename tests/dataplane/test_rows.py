import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.dataplane.rows import cut, gather, scatter


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(0, 9), st.booleans())
def test_rows_come_back_to_their_requests(sizes: list[int], padding: int, text: bool) -> None:
    rows = sum(sizes)
    parts = []
    for tag, size in enumerate(sizes):
        array = np.full((size, 2), tag, dtype=np.int64)
        parts.append({"X": array.astype(str).astype(object) if text else array})
    gathered = gather(parts, rows, rows + padding)
    assert gathered["X"].shape == (rows + padding, 2)
    assert (gathered["X"][rows:] == gathered["X"][0]).all()
    spans = np.cumsum([0, *sizes])
    back = scatter({"Y": gathered["X"]}, spans, 0, len(sizes), batching=True)
    for part, answer in zip(parts, back, strict=True):
        assert (part["X"] == answer["Y"]).all()
    middle = len(sizes) // 2
    part = cut(gathered, int(spans[middle]), rows, rows - int(spans[middle]) + 1)
    again = scatter({"Y": part["X"]}, spans, middle, len(sizes), batching=True)
    for original, answer in zip(parts[middle:], again, strict=True):
        assert (original["X"] == answer["Y"]).all()


def test_a_single_full_request_is_not_copied() -> None:
    array = np.arange(4).reshape(2, 2)
    assert gather([{"X": array}], 2, 2)["X"] is array


def test_models_without_batching_get_their_outputs_whole() -> None:
    outputs = {"Y": np.arange(3)}
    assert scatter(outputs, np.array([0, 1]), 0, 1, batching=False) == [outputs]

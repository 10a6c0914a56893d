from hypothesis import given
from hypothesis import strategies as st

from server.backends.microbatches import Microbatch, fitting, microbatches, padding

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True).map(sorted)


@given(st.data(), sizes, sizes)
def test_every_row_once_and_only_configured_sizes(
    data: st.DataObject, token_buckets: list[int], row_buckets: list[int]
) -> None:
    lengths = data.draw(st.lists(st.integers(0, token_buckets[-1]), max_size=60))
    formed = microbatches(lengths, token_buckets, row_buckets)
    assert sorted(row for each in formed for row in each.rows) == list(range(len(lengths)))
    for each in formed:
        assert each.tokens in token_buckets
        assert each.padded_rows in row_buckets
        assert 0 < len(each.rows) <= each.padded_rows
        assert max(lengths[row] for row in each.rows) <= each.tokens
        # the longest of it needs this length, and as many rows as are added were not to be had
        assert fitting(token_buckets, lengths[each.rows[0]]) == each.tokens
        assert fitting(row_buckets, len(each.rows)) <= each.padded_rows
    assert sum(padding(formed, lengths)) == sum(each.padded_rows * each.tokens for each in formed)


@given(st.lists(st.integers(1, 256), min_size=1, max_size=64))
def test_waste_is_bounded_by_the_buckets(lengths: list[int]) -> None:
    """Every bucket is at most twice the one before, so less than half of a microbatch's rows, and of a row's tokens, is waste;
    lengths below the first bucket count as that."""
    formed = microbatches(lengths, (16, 32, 64, 128, 256), (1, 2, 4, 8, 16, 32, 64))
    real, padded = padding(formed, [max(length, 16) for length in lengths])
    assert padded <= 3 * real
    assert real == sum(max(length, 16) for length in lengths)


def test_short_texts_take_the_place_of_padding() -> None:
    assert microbatches([20, 3, 20, 2, 20], (16, 32), (4,)) == [
        Microbatch((0, 2, 4, 1), 4, 32),
        Microbatch((3,), 4, 16),
    ]
    assert padding([Microbatch((0, 2, 4, 1), 4, 32), Microbatch((3,), 4, 16)], [20, 3, 20, 2, 20]) == (65, 127)


def test_more_rows_than_the_largest_bucket_are_several() -> None:
    formed = microbatches([5] * 10, (8,), (1, 4))
    assert [(len(each.rows), each.padded_rows) for each in formed] == [(4, 4), (4, 4), (2, 4)]


def test_no_rows_are_no_microbatches() -> None:
    assert microbatches([], (8,), (1,)) == []

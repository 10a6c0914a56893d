"""What is remembered is exactly what was answered, never more than fits, and found by nobody who asked something else."""

import gc
from collections import OrderedDict
from collections.abc import Sequence
from sys import getsizeof
from typing import Any
from weakref import ref

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, TensorSpec
from server.lifecycle.cache import ENTRY_BYTES, AnswerCache, cache_key

FLOATS: Any = np.arange(8, dtype=np.float32)


def signature(*inputs: tuple[str, str]) -> Signature:
    specs = tuple(TensorSpec(name, datatype, (-1,)) for name, datatype in inputs)
    return Signature("m", specs, (TensorSpec("y", "FP32", (1,)), TensorSpec("z", "FP32", (1,))), 4)


def texts(elements: Sequence[bytes], shape: tuple[int, ...] | None = None) -> Any:
    made = np.empty(len(elements), dtype=object)
    made[:] = list(elements)
    return made.reshape(shape or (1, len(elements)))


def size_of(outputs: dict[str, Any], key: bytes) -> int:
    cache = AnswerCache(2**40)
    cache.keep(key, outputs)
    return cache.held_bytes


STEP = st.tuples(st.sampled_from(["keep", "keep", "find"]), st.integers(0, 5), st.integers(0, 400))


@given(st.lists(STEP, max_size=20) | st.lists(STEP, min_size=20, max_size=60), st.integers(0, 3500))
@example([("keep", 0, 1), ("keep", 1, 1), ("find", 0, 0), ("keep", 2, 1), ("find", 0, 0), ("find", 1, 0)], 2000)
def test_it_behaves_as_its_model(steps: list[tuple[str, int, int]], max_bytes: int) -> None:
    """Against the plainest bounded LRU there is."""
    cache = AnswerCache(max_bytes)
    model: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()
    for step, number, length in steps:
        key = bytes([number])
        if step == "find":
            found = cache.find(key)
            assert (found is None) == (key not in model)
            if found is not None:
                assert found["y"].tobytes() == model[key][0]
                model.move_to_end(key)
            continue
        data = np.full(length, number, dtype=np.uint8)
        forgotten = 0
        size = size_of({"y": data}, key)
        if key not in model and size <= max_bytes:
            while sum(each for _, each in model.values()) + size > max_bytes:
                model.popitem(last=False)
                forgotten += 1
            model[key] = data.tobytes(), size
        assert cache.keep(key, {"y": data}) == forgotten
        assert cache.held_bytes == sum(each for _, each in model.values()) <= max_bytes
        assert len(cache) == len(model)
    assert [key for key in map(bytes, ([0], [1], [2], [3], [4], [5])) if cache.find(key)] == sorted(model)


@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
def test_every_datatype_and_shape_comes_back_bit_for_bit(datatype: str) -> None:
    dtype: Any = NUMPY_DTYPES[datatype]
    cache = AnswerCache(2**20)
    for number, shape in enumerate([(), (0, 3), (2, 3), (1, 2, 2)]):
        array = np.ones(shape, dtype=dtype)
        if datatype == "BYTES":
            array[...] = b"a\x00\xff"
        cache.keep(bytes([number]), {"y": array})
        found = cache.find(bytes([number]))
        assert found is not None
        assert (found["y"].dtype, found["y"].shape) == (array.dtype, shape)
        assert found["y"].tolist() == array.tolist()


def test_a_view_that_is_no_row_after_the_other_is_copied_as_it_reads() -> None:
    cache = AnswerCache(2**20)
    turned = FLOATS.reshape(2, 4).T
    cache.keep(b"k", {"y": turned})
    found: Any = cache.find(b"k")
    assert (found["y"] == turned).all()
    assert found["y"].flags.c_contiguous


def test_nobody_can_alter_what_is_remembered() -> None:
    cache = AnswerCache(2**20)
    numbers, words = FLOATS.copy(), texts([b"a", b"b"])
    cache.keep(b"k", {"y": numbers, "z": words})
    numbers[:] = -1
    words[:] = b"c"
    found: Any = cache.find(b"k")
    assert (found["y"] == FLOATS).all()
    assert found["z"].tolist() == [[b"a", b"b"]]
    for name in ("y", "z"):
        with pytest.raises(ValueError, match="read-only"):
            found[name][...] = found[name][...]
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        found["y"].setflags(write=True)
    with pytest.raises(TypeError):
        found["y2"] = numbers


class Whole(np.ndarray[Any, Any]):
    """An array that a test can wait for the end of."""


@pytest.mark.parametrize(("dtype", "value"), [(np.float32, 1.0), (object, b"x")])
def test_a_view_does_not_keep_its_batch_alive(dtype: Any, value: Any) -> None:
    cache = AnswerCache(2**20)
    whole = np.full((64, 4), value, dtype).view(Whole)
    watch = ref(whole)
    cache.keep(b"k", {"y": whole[3:4]})
    del whole
    gc.collect()
    assert watch() is None
    found: Any = cache.find(b"k")
    assert found["y"].tolist() == [[value] * 4]


def test_elements_of_bytes_are_counted() -> None:
    small, large = texts([b"x"]), texts([b"x" * 5000])
    assert size_of({"y": large}, b"k") - size_of({"y": small}, b"k") == 4999
    assert size_of({"y": small}, b"k") > ENTRY_BYTES + getsizeof(b"k")


def test_what_is_larger_than_the_bound_pushes_nobody_out() -> None:
    cache = AnswerCache(2000)
    cache.keep(b"a", {"y": FLOATS})
    assert cache.keep(b"b", {"y": np.zeros(10_000, np.float32)}) == 0
    assert cache.keep(b"c", {"y": texts([b"x" * 5000])}) == 0
    assert (cache.find(b"b"), cache.find(b"c"), len(cache)) == (None, None, 1)


def test_what_was_found_last_is_forgotten_last() -> None:
    cache = AnswerCache(2 * size_of({"y": FLOATS}, b"a"))
    cache.keep(b"a", {"y": FLOATS})
    cache.keep(b"b", {"y": FLOATS})
    assert cache.find(b"a") is not None
    assert cache.keep(b"c", {"y": FLOATS}) == 1
    assert [key for key in (b"a", b"b", b"c") if cache.find(key) is not None] == [b"a", b"c"]
    assert cache.keep(b"d", {"y": np.zeros(200, np.float32)}) == 2
    assert len(cache) == 1


def test_the_first_of_two_equal_answers_stays() -> None:
    cache = AnswerCache(2**20)
    cache.keep(b"k", {"y": FLOATS})
    held = cache.held_bytes
    assert cache.keep(b"k", {"y": FLOATS * 2}) == 0
    found: Any = cache.find(b"k")
    assert (found["y"] == FLOATS).all()
    assert cache.held_bytes == held


REQUEST = st.tuples(
    st.frozensets(st.sampled_from(["y", "z"])),
    st.dictionaries(st.sampled_from(["a", "b", "ab"]), st.lists(st.binary(max_size=5), min_size=1, max_size=3), max_size=3),
)


@given(REQUEST, REQUEST)
def test_keys_are_equal_exactly_for_equal_requests(one: Any, other: Any) -> None:
    """Names and elements that run together when written after each other are still told apart."""
    mine = signature(("a", "BYTES"), ("b", "BYTES"), ("ab", "BYTES"))

    def key(request: Any) -> bytes:
        return cache_key(request[0], {name: texts(each) for name, each in request[1].items()}, mine)

    assert (key(one) == key(other)) == (one == other)
    outputs, arrays = one
    assert key((outputs, dict(reversed(arrays.items())))) == key(one)


def test_whatever_changes_the_answer_changes_the_key() -> None:
    numbers = signature(("x", "FP32"), ("w", "FP32"))
    raw = FLOATS.tobytes()
    keys = [
        cache_key((), {"x": FLOATS.reshape(1, 8)}, numbers),
        cache_key((), {"x": FLOATS.reshape(2, 4)}, numbers),
        cache_key((), {"x": FLOATS.reshape(8, 1)}, numbers),
        cache_key((), {"w": FLOATS.reshape(1, 8)}, numbers),
        cache_key(("y",), {"x": FLOATS.reshape(1, 8)}, numbers),
        cache_key(("y", "z"), {"x": FLOATS.reshape(1, 8)}, numbers),
        cache_key((), {"x": np.frombuffer(raw, np.int32).reshape(1, 8)}, signature(("x", "INT32"))),
        cache_key((), {"x": np.zeros((1, 1), np.float32)}, numbers),
        cache_key((), {"x": -np.zeros((1, 1), np.float32)}, numbers),
        cache_key((), {"x": np.zeros((0, 4), np.float32)}, numbers),
        cache_key((), {"x": np.zeros((), np.float32)}, numbers),
        cache_key((), {}, numbers),
        cache_key((), {"x": texts([b"ab", b""])}, signature(("x", "BYTES"))),
        cache_key((), {"x": texts([b"a", b"b"])}, signature(("x", "BYTES"))),
        cache_key((), {"x": texts([b"", b"ab"])}, signature(("x", "BYTES"))),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}
    assert cache_key(("z", "y"), {}, numbers) == cache_key(("y", "z"), {}, numbers)
    assert cache_key((), {"x": FLOATS.reshape(8, 1).T}, numbers) == keys[0]

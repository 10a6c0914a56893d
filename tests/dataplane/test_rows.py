from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, Array, Shapes, TensorSpec
from server.dataplane.rows import brought, cut, gather, scatter


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


def naive(array: Array, dims: tuple[int, ...], value: int) -> Array:
    """One element after the other."""
    made = np.full((len(array), *dims), value, array.dtype)
    for index in np.ndindex(*array.shape):
        made[index] = array[index]
    return made


@st.composite
def arrays(draw: st.DrawFn, spec: TensorSpec, wanted: tuple[int, ...], rows: int, tag: int) -> Array:
    """Rows that are padded to the `wanted` dimensions."""
    dims = []
    for stated, size in zip(spec.shape, wanted, strict=True):
        smaller = [other for other in spec.pad_to if other < size]
        least = smaller[-1] + 1 if smaller else 0
        dims.append(draw(st.integers(least, size)) if stated == -1 else size)
    numbers = np.arange(rows * int(np.prod(dims, dtype=int))) % 9 + 10 * tag + 5
    return numbers.reshape(rows, *dims).astype(NUMPY_DTYPES[spec.datatype])


@st.composite
def ragged(draw: st.DrawFn) -> tuple[Signature, list[dict[str, Array]]]:
    """Requests that may share a batch, with different sizes, of inputs that are padded and one that is not."""
    free = draw(st.lists(st.sampled_from([-1, -1, 2]), min_size=1, max_size=3).filter(lambda dims: -1 in dims))
    sizes = tuple(sorted(draw(st.sets(st.integers(1, 6), min_size=1, max_size=3))))
    ids = TensorSpec("ids", "INT64", tuple(free), pad_to=sizes, pad_value=draw(st.integers(-3, 3)))
    mask = TensorSpec("mask", "INT8", (-1,), optional=True, pad_to=(4,), pad_value=1)
    scale = TensorSpec("scale", "FP32", (2,))
    brought_by_all = [ids, scale, *([mask] if draw(st.booleans()) else [])]
    wanted = {
        spec.name: tuple(draw(st.sampled_from(spec.pad_to)) if dim == -1 else dim for dim in spec.shape)
        for spec in brought_by_all
    }
    parts = []
    for tag in range(draw(st.integers(1, 6))):
        rows = draw(st.integers(1, 3))
        parts.append({spec.name: draw(arrays(spec, wanted[spec.name], rows, tag)) for spec in brought_by_all})
    return Signature("m", (ids, scale, mask), (), 64), parts


@given(ragged(), st.integers(0, 4), st.booleans())
def test_padded_rows_are_what_a_naive_gathering_makes(
    case: tuple[Signature, list[dict[str, Any]]], further: int, elsewhere: bool
) -> None:
    signature, parts = case
    rows = sum(len(part["scale"]) for part in parts)
    given_shapes: list[Shapes] = []

    def allocate(shapes: Shapes) -> dict[str, Array]:
        given_shapes.append(shapes)
        return {name: np.full(shape, 77, dtype) for name, (shape, dtype) in shapes.items()}

    gathered = (
        gather(parts, rows, rows + further, allocate, signature)
        if elsewhere
        else gather(parts, rows, rows + further, signature=signature)
    )
    assert len(given_shapes) == elsewhere
    assert gathered.keys() == parts[0].keys()
    for name, whole in gathered.items():
        spec = signature.input_names[name]
        dims = spec.padded(parts[0][name].shape[1:])
        expected = np.concatenate([naive(part[name], dims, int(spec.pad_value)) for part in parts])
        assert whole.dtype == parts[0][name].dtype
        assert whole.tolist() == [*expected.tolist(), *([expected[0].tolist()] * further)]
    assert brought(parts, signature) == sum(part[name].size for part in parts for name in ("ids", "mask") if name in part)
    # halves are cut from what was gathered, for execution of their own
    spans = np.cumsum([0, *(len(part["scale"]) for part in parts)])
    middle = int(spans[len(parts) // 2])
    half = cut(gathered, middle, rows, rows - middle + 1)
    assert half["ids"][:-1].tolist() == gathered["ids"][middle:rows].tolist()


def allocate(shapes: Shapes) -> dict[str, Array]:
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}


def test_a_model_without_batching_gets_its_one_request_padded() -> None:
    signature = Signature("m", (TensorSpec("ids", "INT64", (-1, 2), pad_to=(4, 8), pad_value=9),), (), 0)

    for place in ({}, {"allocate": allocate}):
        made = gather([{"ids": np.ones((3, 2), np.int64)}], 1, 1, signature=signature, **place)
        assert made["ids"].tolist() == [[1, 1]] * 3 + [[9, 9]]
    whole = np.ones((8, 2), np.int64)
    assert gather([{"ids": whole}], 1, 1, signature=signature)["ids"] is whole
    assert gather([{"ids": whole}], 1, 1, allocate, signature)["ids"].tolist() == whole.tolist()


def test_a_single_text_is_placed_as_it_is() -> None:
    signature = Signature("m", (TensorSpec("text", "BYTES", ()),), (), 0)

    made = gather([{"text": np.array(b"word", dtype=object)}], 1, 1, allocate, signature)
    assert made["text"].shape == ()
    assert made["text"].item() == b"word"

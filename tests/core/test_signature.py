"""The texts are Triton's, word for word: clients match on them. Which one wins is part of the contract too."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import InvalidRequest
from server.core.requests import InferRequest, WireTensor
from server.core.signature import CheckedRows, Signature, check
from server.core.tensors import NUMPY_DTYPES, TensorSpec, element_count, join_bytes

INT = TensorSpec("INPUT0", "INT32", (16,))
TEXT = TensorSpec("INPUT1", "BYTES", (2,))
OUT = TensorSpec("OUTPUT0", "INT32", (16,))
NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input"
    " shape. If you want to specify the full shape including the batch dim in your input dims config, try setting"
    " max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


def signature(*inputs: TensorSpec, max_batch: int = 8) -> Signature:
    return Signature("m", inputs or (INT, TEXT), (OUT,), max_batch)


def texts(*items: bytes) -> Any:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def ints(shape: tuple[int, ...] = (1, 16), name: str = "INPUT0", datatype: str = "INT32", data: Any = None) -> WireTensor:
    return WireTensor(name, datatype, shape, bytes(4 * element_count(shape)) if data is None else data)


def words(shape: tuple[int, ...] = (1, 2), *items: bytes, name: str = "INPUT1") -> WireTensor:
    return WireTensor(name, "BYTES", shape, join_bytes(texts(*(items or (b"a", b"")))))


def request(*inputs: WireTensor, outputs: tuple[str, ...] = (), request_id: str = "") -> InferRequest:
    return InferRequest("m", "", request_id, inputs, outputs, 0)


def refusal(asked: InferRequest, against: Signature) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check(asked, against)
    prefix = f"[request id: {asked.id or '<id_unknown>'}] "
    # Triton names the request in all of these but the two about names the model does not have
    assert str(caught.value).startswith(prefix) != str(caught.value).startswith("unexpected inference ")
    return str(caught.value).removeprefix(prefix)


GOOD = (ints(), words())
REFUSALS: dict[str, tuple[InferRequest, str]] = {
    "unknown output": (request(*GOOD, outputs=("X",)), "unexpected inference output 'X' for model 'm'"),
    "output twice": (request(*GOOD, outputs=("OUTPUT0", "OUTPUT0")), "output 'OUTPUT0' already exists in request"),
    "input twice": (request(ints(), ints()), "input 'INPUT0' already exists in request"),
    "input missing": (
        request(ints()),
        "expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['INPUT0'], but missing required input(s)"
        " ['INPUT1']. Please provide all required input(s).",
    ),
    "no input": (
        request(),
        "expected 2 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing required input(s)"
        " ['INPUT0','INPUT1']. Please provide all required input(s).",
    ),
    "input too many": (
        request(*GOOD, ints(name="X")),
        "expected 2 inputs but got 3 inputs for model 'm'. Got input(s) ['INPUT0','INPUT1','X'], but missing required"
        " input(s) []. Please provide all required input(s).",
    ),
    "unknown input": (request(ints(), ints(name="X")), "unexpected inference input 'X' for model 'm'"),
    "negative": (
        request(ints((-1, 16), data=b""), words()),
        "input 'INPUT0' for model 'm' has a negative dimension in shape [-1,16]",
    ),
    "no shape": (
        request(ints(()), words()),
        "input 'INPUT0' has no shape but model requires batch dimension for 'm'",
    ),
    "rows differ": (request(ints((2, 16)), words()), "input 'INPUT1' batch size does not match other inputs for 'm'"),
    "no rows": (request(ints((0, 16)), words((0, 2))), "inference request batch-size must be >= 1 for 'm'"),
    "rows too many": (request(ints((9, 16)), words((9, 2))), "inference request batch-size must be <= 8 for 'm'"),
    "datatype": (
        request(ints(datatype="FP32"), words()),
        "inference input 'INPUT0' data-type is 'FP32', but model 'm' expects 'INT32'",
    ),
    "width": (
        request(ints((1, 17)), words()),
        f"unexpected shape for input 'INPUT0' for model 'm'. Expected [-1,16], got [1,17].{NOTE}",
    ),
    "rank": (
        request(ints((1, 16, 1)), words()),
        f"unexpected shape for input 'INPUT0' for model 'm'. Expected [-1,16], got [1,16,1].{NOTE}",
    ),
    "bytes": (
        request(ints(data=bytes(128)), words()),
        "input byte size mismatch for input 'INPUT0' for model 'm'. Expected 64, got 128",
    ),
    "bytes of an array": (
        request(ints(data=np.zeros(16, np.int64)), words()),
        "input byte size mismatch for input 'INPUT0' for model 'm'. Expected 64, got 128",
    ),
    "bytes of a view": (
        request(ints(data=memoryview(bytes(3))), words()),
        "input byte size mismatch for input 'INPUT0' for model 'm'. Expected 64, got 3",
    ),
    "texts too few": (
        request(ints(), words((1, 2), b"a")),
        "expected 2 string elements for inference input 'INPUT1' for model 'm', got 1",
    ),
    "texts too many": (
        request(ints(), words((1, 2), b"a", b"b", b"c")),
        "unexpected number of string elements 3 for inference input 'INPUT1' for model 'm', expecting 2",
    ),
    "typed texts too many": (
        request(ints(), WireTensor("INPUT1", "BYTES", (1, 2), texts(b"a", b"b", b"c"))),
        "unexpected number of string elements 3 for inference input 'INPUT1' for model 'm', expecting 2",
    ),
    "text cut off": (
        request(ints(), WireTensor("INPUT1", "BYTES", (1, 2), b"\x05\0\0\0ab")),
        "incomplete string data: expected 5 bytes, got 2 for inference input 'INPUT1' for model 'm'",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_rule_has_its_text(case: str) -> None:
    asked, text = REFUSALS[case]
    assert refusal(asked, signature()) == text


def test_the_text_begins_with_the_request() -> None:
    with pytest.raises(InvalidRequest, match=r"^\[request id: 7\] inference request batch-size must be <= 8 for 'm'$"):
        check(request(ints((9, 16)), words((9, 2)), request_id="7"), signature())


def test_the_first_broken_rule_speaks() -> None:
    """One request that breaks every rule; each is mended in turn, and the next one speaks."""
    broken_text = words((1, 3), b"a")
    steps = [
        (request(ints((9, 17), "X", "FP32"), ints(), outputs=("Y",)), "unexpected inference output"),
        (request(ints((9, 17), "X", "FP32")), "expected 2 inputs but got 1"),
        (request(ints((9, 17), "X", "FP32"), broken_text), "unexpected inference input 'X'"),
        (request(ints((9, 17), datatype="FP32"), broken_text), "input 'INPUT1' batch size does not match"),
        (request(ints((9, 17), datatype="FP32"), words((9, 3), b"a")), "inference request batch-size must be <= 8"),
        # the datatype of the last input comes before the shape of the first
        (request(ints((1, 17)), ints((1, 3), "INPUT1")), "inference input 'INPUT1' data-type is 'INT32'"),
        # the shape of the last input comes before the bytes of the first
        (request(ints(data=b""), broken_text), "unexpected shape for input 'INPUT1'"),
        (request(ints(data=b""), words((1, 2), b"a")), "input byte size mismatch for input 'INPUT0'"),
        (request(ints(), words((1, 2), b"a")), "expected 2 string elements"),
    ]
    for asked, beginning in steps:
        assert refusal(asked, signature()).startswith(beginning)
    assert check(request(*GOOD, outputs=("OUTPUT0",)), signature()).rows == 1


def test_several_outputs_may_be_asked_for_in_any_order() -> None:
    against = Signature("m", (INT,), (OUT, TensorSpec("OUTPUT1", "FP32", (1,))), 8)
    assert check(request(ints(), outputs=("OUTPUT1", "OUTPUT0")), against).rows == 1


OPTIONAL = TensorSpec("INPUT2", "FP32", (-1,), optional=True)


def test_optional_inputs_may_be_left_out() -> None:
    against = signature(INT, TEXT, OPTIONAL)
    assert set(check(request(*GOOD), against).arrays) == {"INPUT0", "INPUT1"}
    more = check(request(*GOOD, ints((1, 5), "INPUT2", "FP32")), against)
    assert more.arrays["INPUT2"].shape == (1, 5)
    assert more.shape_key != check(request(*GOOD), against).shape_key
    assert refusal(request(ints()), against) == (
        "expected number of inputs between 2 and 3 but got 1 inputs for model 'm'. Got input(s) ['INPUT0'], but missing"
        " required input(s) ['INPUT1']. Please provide all required input(s)."
    )
    assert "missing required input(s) ['INPUT1']" in refusal(request(ints(), ints((1, 5), "INPUT2", "FP32")), against)
    assert check(request(), signature(OPTIONAL)) == CheckedRows({}, 1, ())


def test_a_model_without_batches_takes_whole_shapes() -> None:
    against = signature(TensorSpec("INPUT0", "INT32", ()), max_batch=0)
    checked = check(request(ints(())), against)
    assert (checked.rows, checked.arrays["INPUT0"].shape, checked.shape_key) == (1, (), (("INPUT0", ()),))
    assert refusal(request(ints((1,))), against) == "unexpected shape for input 'INPUT0' for model 'm'. Expected [], got [1]."
    empty = check(request(ints((0, 3))), signature(TensorSpec("INPUT0", "INT32", (-1, 3)), max_batch=0))
    assert (empty.rows, empty.arrays["INPUT0"].shape) == (1, (0, 3))


@pytest.mark.parametrize("datatype", ["INT32", "BYTES"])
def test_empty_tensors_are_tensors_and_absurd_ones_are_refused(datatype: str) -> None:
    against = signature(TensorSpec("x", datatype, (-1, -1, -1)))
    empty = check(request(WireTensor("x", datatype, (2, 0, 3, 1), b"")), against)
    assert empty.arrays["x"].shape == (2, 0, 3, 1)
    assert empty.arrays["x"].dtype == NUMPY_DTYPES[datatype]
    absurd = request(WireTensor("x", datatype, (1, 0, 2**62, 2**62), b""))
    assert refusal(absurd, against) == (
        "shape [1,0,4611686018427387904,4611686018427387904] of inference input 'x' for model 'm' is larger than an array can"
        " be"
    )
    # this one fits, but not the batch it would be padded to
    assert "is larger than an array can be" in refusal(request(WireTensor("x", datatype, (1, 0, 2**60, 1), b"")), against)
    huge = refusal(request(WireTensor("x", datatype, (1, 2**62, 2**62, 2**62), b"")), against)
    assert str(2**186 * (4 if datatype == "INT32" else 1)) in huge


def test_raw_contents_are_not_copied_and_cannot_be_written() -> None:
    data = np.arange(16, dtype=np.int32).tobytes()
    for form in (data, memoryview(data)):
        array = check(request(ints(data=form), words()), signature()).arrays["INPUT0"]
        assert np.shares_memory(array, np.frombuffer(data, np.int32))
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, [range(16)])


def test_typed_contents_come_out_in_this_machines_byte_order() -> None:
    given_array = np.arange(16, dtype=">i4")
    array = check(request(ints(data=given_array), words()), signature()).arrays["INPUT0"]
    assert array.dtype == np.dtype(np.int32)
    np.testing.assert_array_equal(array, [range(16)])


@pytest.mark.parametrize("form", [bytes, memoryview])
def test_whatever_is_not_zero_is_true(form: Any) -> None:
    against = signature(TensorSpec("x", "BOOL", (4,)))
    array = check(request(WireTensor("x", "BOOL", (1, 4), form(b"\x00\x01\x02\xff"))), against).arrays["x"]
    assert array.view(np.uint8).tolist() == [[0, 1, 1, 1]]


def test_equally_long_texts_stay_objects_with_their_last_zeros() -> None:
    for data in (words((1, 2), b"a\0", b"b\0").data, texts(b"a\0", b"b\0")):
        array = check(request(ints(), WireTensor("INPUT1", "BYTES", (1, 2), data)), signature()).arrays["INPUT1"]
        assert array.dtype == object
        assert array.tolist() == [[b"a\0", b"b\0"]]


def test_rows_may_be_joined_exactly_when_the_keys_are_equal() -> None:
    against = signature(TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,)))

    def key(width_a: int, width_b: int, rows: int, *, swap: bool = False) -> object:
        inputs = [ints((rows, width_a), "a", "FP32"), ints((rows, width_b), "b", "FP32")]
        return check(request(*(reversed(inputs) if swap else inputs)), against).shape_key

    assert key(3, 4, 1) == key(3, 4, 7) == key(3, 4, 2, swap=True)
    assert len({key(3, 4, 1), key(4, 3, 1), key(3, 3, 1)}) == 3


def test_metadata_shows_the_batch_dimension_where_there_is_one() -> None:
    assert signature().full_shape(INT) == (-1, 16)
    assert signature(max_batch=0).full_shape(INT) == (16,)


# -- any request against any signature ---------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", ""])
DATATYPES = st.sampled_from(list(NUMPY_DTYPES))
DIMS = st.sampled_from([0, 1, 1, 2, 3, 2**31, 2**62, 2**63 - 1])


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    names = draw(st.lists(NAMES, unique=True, max_size=3))
    shapes = st.lists(st.sampled_from([-1, -1, 1, 2]), max_size=3).map(tuple)
    inputs = tuple(TensorSpec(name, draw(DATATYPES), draw(shapes), draw(st.booleans())) for name in names)
    return Signature("m", inputs, (TensorSpec("y", "FP32", (1,)),), draw(st.sampled_from([0, 1, 4])))


@st.composite
def tensors(draw: st.DrawFn, spec: TensorSpec | None, rows: int | None) -> WireTensor:
    """Mostly what the model wants, each property now and then something else."""

    def seldom(usual: Any, other: st.SearchStrategy[Any]) -> Any:
        return draw(other) if spec is None or draw(st.integers(0, 11)) == 7 else usual

    wanted = (
        () if spec is None else (*(() if rows is None else (rows,)), *(draw(DIMS) if dim == -1 else dim for dim in spec.shape))
    )
    shape = seldom(wanted, st.lists(st.one_of(DIMS, st.just(-1)), max_size=4).map(tuple))
    datatype = seldom(spec and spec.datatype, st.one_of(DATATYPES, st.just("FP8"), st.just("")))
    count = min(element_count(dim for dim in shape), 64)
    if datatype == "BYTES":
        data: Any = texts(*draw(st.lists(st.binary(max_size=3), min_size=max(count, 0), max_size=max(count, 0))))
        data = draw(st.sampled_from([data, join_bytes(data)]))
    else:
        dtype: np.dtype[Any] = NUMPY_DTYPES.get(datatype, np.dtype(np.uint8))
        flat = np.frombuffer(
            draw(st.binary(min_size=max(count, 0) * dtype.itemsize, max_size=max(count, 0) * dtype.itemsize)), dtype
        )
        data = draw(st.sampled_from([flat, flat.tobytes(), memoryview(flat.tobytes()), flat.astype(dtype.newbyteorder(">"))]))
    data = seldom(data, st.binary(max_size=40))
    return WireTensor(seldom(spec and spec.name, NAMES), datatype, shape, data)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[InferRequest, Signature]:
    against = draw(signatures())
    rows = draw(st.sampled_from([1, 1, 2, 4, 5, 0])) if against.max_batch else None
    inputs = [draw(tensors(spec, rows)) for spec in against.inputs if not spec.optional or draw(st.booleans())]
    if draw(st.integers(0, 9)) == 7:
        inputs.append(draw(tensors(None, rows)))
    outputs = draw(st.sampled_from([(), (), ("y",), ("y", "y"), ("x",)]))
    return request(*inputs, outputs=outputs), against


@given(pairs())
def test_any_request_is_accepted_whole_or_refused(pair: tuple[InferRequest, Signature]) -> None:
    asked, against = pair
    try:
        checked = check(asked, against)
    except InvalidRequest:
        return
    assert set(asked.outputs) <= set(against.output_names)
    assert set(checked.arrays) == {tensor.name for tensor in asked.inputs}
    assert {spec.name for spec in against.inputs if not spec.optional} <= set(checked.arrays)
    assert 1 <= checked.rows <= max(against.max_batch, 1)
    for tensor in asked.inputs:
        array, spec = checked.arrays[tensor.name], against.input_names[tensor.name]
        assert array.shape == tensor.shape
        assert array.dtype == NUMPY_DTYPES[spec.datatype]
        assert array.dtype.isnative
        if against.max_batch:
            assert array.shape[0] == checked.rows
        assert len(array.shape) == len(spec.shape) + bool(against.max_batch)
        if spec.datatype == "BYTES":
            assert all(isinstance(item, bytes) for item in array.ravel().tolist())


IDS = TensorSpec("ids", "INT32", (-1,), pad_to=(4, 8, 16))
MASK = TensorSpec("mask", "INT32", (-1, -1), optional=True, pad_to=(8, 12))


def padded(ids: int, *mask: int) -> CheckedRows:
    tensors = [ints((2, ids), "ids")] + ([ints((2, *mask), "mask")] if mask else [])
    return check(request(*tensors), signature(IDS, MASK))


def test_requests_that_are_padded_to_the_same_sizes_share_a_lane() -> None:
    one, other = padded(5), padded(8)
    assert (one.arrays["ids"].shape, one.shape_key) == ((2, 5), (("ids", (8,)),))
    assert one.shape_key == other.shape_key != padded(9).shape_key
    assert padded(1, 8, 9).shape_key == padded(4, 2, 12).shape_key == (("ids", (4,)), ("mask", (8, 12)))
    assert padded(0).shape_key == padded(4).shape_key


def test_the_size_class_is_that_of_the_largest_size() -> None:
    """Of all sizes that any input has: 4, 8, 12, 16."""
    against = signature(IDS, MASK)
    assert against.pad_sizes == (4, 8, 12, 16)
    assert [padded(size).size_class for size in (0, 4, 5, 8, 9, 16)] == [0, 0, 1, 1, 3, 3]
    assert [padded(3, 1, 1).size_class, padded(3, 1, 9).size_class, padded(13, 1, 9).size_class] == [1, 2, 3]
    assert check(request(), signature(MASK)).size_class == 0
    assert check(request(*GOOD), signature()).size_class == 0


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ([ints((1, 17), "ids")], "input 'ids' has size 17 in shape [1,17], but its size must be <= 16 for 'm'"),
        (
            [ints((1, 4), "ids"), ints((1, 8, 13), "mask")],
            "input 'mask' has size 13 in shape [1,8,13], but its size must be <= 12 for 'm'",
        ),
    ],
)
def test_sizes_above_the_largest_are_refused(tensors: list[WireTensor], text: str) -> None:
    assert refusal(request(*tensors), signature(IDS, MASK)) == text


def test_rows_are_no_size_but_with_whole_shapes_every_free_dimension_is() -> None:
    assert check(request(ints((20, 4), "ids")), signature(IDS, max_batch=64)).rows == 20
    whole = signature(TensorSpec("ids", "INT32", (-1, 2), pad_to=(4, 8)), max_batch=0)
    assert check(request(ints((5, 2), "ids")), whole).shape_key == (("ids", (8, 2)),)
    assert refusal(request(ints((9, 2), "ids")), whole) == (
        "input 'ids' has size 9 in shape [9,2], but its size must be <= 8 for 'm'"
    )

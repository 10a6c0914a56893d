import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.backends import torch_program
from server.backends.base import Backend, BackendFactory, LoadTask, Pending
from server.backends.fake_accelerator import Accelerator, Work
from server.backends.text import PipelinedText, TextBackend
from server.backends.text import open_backend as open_bare
from server.backends.text_tokens import Tokens
from server.core.errors import BackendDead, BackendFailed, InputsUnfit, LoadFailed, OutOfDeviceMemory
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec
from server.lifecycle.loader import TOKENIZER_FILE
from server.optional import backend_factory
from tests.backends import texts
from tests.backends.texts import OUTPUT, WORDS, network, put, task, tokenizer

Open = Callable[..., TextBackend]


def open_backend(task: LoadTask, factory: Callable[[str], BackendFactory]) -> TextBackend:
    """As a load does: opened, then got ready."""
    backend = open_bare(task, factory)
    try:
        backend.prepare((7,))
    except BaseException:
        backend.close()
        raise
    return backend


ROWS, TOKENS = (1, 2, 4), (4, 8, 24)
BATCHING = {"max_batch": 4, "batching": {"buckets": list(ROWS)}, "text": {"token_buckets": list(TOKENS)}}


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def column(*given: bytes | str) -> dict[str, Array]:
    made = np.empty((len(given), 1), dtype=object)
    made[:, 0] = [text.encode() if isinstance(text, str) else text for text in given]
    return {"text": made}


@cache
def eager(text: str, most: int = 24) -> Any:
    """What the network says of one text alone, without padding."""
    ids = torch.tensor([tokenizer(most, pads=False).encode(text).ids])
    with torch.inference_mode():
        return network()(ids, torch.ones_like(ids)).numpy()[0]


class Watched:
    """A backend that notes the sizes of its batches."""

    def __init__(self, inner: Backend) -> None:
        self.inner, self.sizes, self.closed = inner, list[tuple[int, ...]](), 0
        self.signature, self.platform, self.device = inner.signature, inner.platform, inner.device

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.sizes.append(inputs["input_ids"].shape)
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape
        return self.inner.run(inputs)

    def memory_bytes(self) -> int:
        return self.inner.memory_bytes()

    def close(self) -> None:
        self.closed += 1
        self.inner.close()


class OnDevice(Watched):
    """The same on a device that works by itself, and takes `slots` batches before it makes its caller wait."""

    device_ = Accelerator("fake:7", 1000)

    def __init__(self, inner: Backend, slots: int = 2, row_bytes: int = 0) -> None:
        super().__init__(inner)
        self.slots, self.open, self.row_bytes = slots, 0, row_bytes
        self.lock = threading.Lock()
        self.device = "fake:7"

    def arrays(self, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, Array]:
        return {name: np.full(shape, -1, dtype) for name, (shape, dtype) in shapes.items()}

    def begin(self, inputs: Mapping[str, Array]) -> Pending:
        rows = len(inputs["input_ids"])
        work = self.device_.begin(self.run(inputs), 1000, rows * self.row_bytes, lambda until_ns: None)
        with self.lock:
            self.open += 1
            assert self.open <= self.slots, "it would wait for ever"
        return Returning(self, work)


class Returning:
    def __init__(self, owner: OnDevice, work: Work) -> None:
        self.owner, self.work, self.held = owner, work, True

    def wait(self) -> None:
        self.work.wait()

    def outputs(self) -> dict[str, Array]:
        self.release()
        return self.work.outputs()

    def release(self) -> None:
        with self.owner.lock:
            self.owner.open -= self.held
            self.held = False

    def __del__(self) -> None:
        self.release()


def over(kind: Callable[[Backend], Watched]) -> tuple[Callable[[str], BackendFactory], list[Watched]]:
    made: list[Watched] = []

    def factory(name: str) -> BackendFactory:
        assert name == "torch"

        def opened(task: LoadTask) -> Backend:
            made.append(kind(torch_program.open_backend(task)))
            return made[-1]

        return opened

    return factory, made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("texts") / "1")


@pytest.fixture(scope="module")
def watched(folder: Path) -> Iterator[tuple[TextBackend, Watched]]:
    factory, made = over(Watched)
    backend = open_backend(task(folder, **BATCHING), factory)
    yield backend, made[0]
    backend.close()


@pytest.fixture(scope="module")
def pipelined(folder: Path) -> Iterator[tuple[PipelinedText, OnDevice]]:
    factory, made = over(OnDevice)
    backend = open_backend(task(folder, **BATCHING), factory)
    assert isinstance(backend, PipelinedText)
    assert isinstance(made[0], OnDevice)
    yield backend, made[0]
    backend.close()


sentences = st.lists(st.sampled_from([*WORDS[4:], "what", "GRÖSSE"]), max_size=30).map(" ".join) | st.text(max_size=40)


def test_what_it_takes_and_gives(watched: tuple[TextBackend, Watched]) -> None:
    backend, inner = watched
    spec = TensorSpec(OUTPUT, "FP32", (8,))
    assert backend.signature == Signature("texts", (TensorSpec("text", "BYTES", (1,)),), (spec,), 4)
    assert (backend.platform, backend.device, backend.memory_bytes()) == ("text", "cpu", inner.memory_bytes())
    assert inner.sizes[: len(TOKENS)] == [(1, tokens) for tokens in TOKENS], "every token bucket is tried at the load"


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(sentences, min_size=1, max_size=9))
def test_each_row_gets_what_it_gets_alone(watched: tuple[TextBackend, Watched], batch: list[str]) -> None:
    backend, inner = watched
    del inner.sizes[:]
    backend.take_elements()
    got = backend.run(column(*batch))[OUTPUT]
    assert got.shape == (len(batch), 8)
    for row, text in zip(got, batch, strict=True):
        np.testing.assert_allclose(row, eager(text), rtol=0, atol=1e-5)
    assert set(inner.sizes) <= {(rows, tokens) for rows in ROWS for tokens in TOKENS}
    real, padded = backend.take_elements()
    assert backend.take_elements() == (0, 0)
    assert real == sum(len(tokenizer(pads=False).encode(text).ids) for text in batch)
    assert real + padded == sum(rows * tokens for rows, tokens in inner.sizes)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(sentences, min_size=1, max_size=9), min_size=1, max_size=2))
def test_batches_ahead_are_answered_alike_and_never_wait_for_each_other(
    pipelined: tuple[PipelinedText, OnDevice], batches: list[list[str]]
) -> None:
    """Two threads have a batch open each, as engines that stage, on a device with room for two microbatches."""
    backend, inner = pipelined
    del inner.sizes[:]
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(backend.run, column(*batch)) for batch in batches]
        for batch, answer in zip(batches, asked, strict=True):
            for row, text in zip(answer.result(20)[OUTPUT], batch, strict=True):
                np.testing.assert_allclose(row, eager(text), rtol=0, atol=1e-5)
    assert inner.open == 0
    assert set(inner.sizes) <= {(rows, tokens) for rows in ROWS for tokens in TOKENS}


def test_all_microbatches_are_handed_over_where_there_is_room(folder: Path) -> None:
    factory, made = over(lambda inner: OnDevice(inner, slots=3))
    backend = open_backend(task(folder, **BATCHING), factory)
    assert isinstance(backend, PipelinedText)
    (inner,) = made
    assert isinstance(inner, OnDevice)
    assert inner.sizes == [(rows, tokens) for tokens in TOKENS for rows in ROWS], "a device may prepare for each shape"
    pending = backend.begin(column(*["late"] * 5, *["train " * 20] * 4))
    assert inner.open == 3
    pending.wait()
    assert len(pending.outputs()[OUTPUT]) == 9
    shapes = backend.arrays({"text": ((4, 1), np.dtype(object))})
    assert shapes["text"].shape == (4, 1)
    backend.close()
    assert inner.closed == 1


def test_what_is_dropped_on_its_way_holds_no_room(pipelined: tuple[PipelinedText, OnDevice]) -> None:
    backend, inner = pipelined
    for _ in range(5):
        pending = backend.begin(column("late", "train " * 20))
        assert inner.open == 2
        del pending
        assert inner.open == 0
    assert backend.run(column("late"))[OUTPUT].shape == (1, 8)


def test_a_device_without_memory_is_told_and_holds_no_room(folder: Path) -> None:
    factory, made = over(lambda inner: OnDevice(inner, row_bytes=400))
    backend = open_backend(task(folder, **BATCHING | {"batching": {"buckets": [1, 2]}, "max_batch": 2}), factory)
    assert isinstance(backend, PipelinedText)
    (inner,) = made
    assert isinstance(inner, OnDevice)
    inner.row_bytes = 600
    for _ in range(3):
        with pytest.raises(OutOfDeviceMemory, match="out of memory"):
            backend.run(column("late train on time and more", "late", "late"))
        assert inner.open == 0
    assert backend.run(column("late"))[OUTPUT].shape == (1, 8)


def test_a_failing_execution_holds_no_room(pipelined: tuple[PipelinedText, OnDevice], monkeypatch: pytest.MonkeyPatch) -> None:
    backend, inner = pipelined

    def fails(self: Returning) -> None:
        raise BackendFailed("it is the device's fault")

    monkeypatch.setattr(Returning, "wait", fails)
    for texts_ in (("late",), ("late", "train " * 20, "late train on time 1 2")):
        pending = backend.begin(column(*texts_))
        with pytest.raises(BackendFailed, match="device's fault"):
            pending.wait()
        assert inner.open == 0
    pending = backend.begin(column("late"))
    with pytest.raises(BackendFailed, match="device's fault"):
        pending.outputs()
    assert inner.open == 0
    monkeypatch.undo()
    assert backend.run(column("late"))[OUTPUT].shape == (1, 8)


def test_both_backends_answer_alike_and_one_must_be_chosen(tmp_path: Path) -> None:
    folder = put(tmp_path / "1", onnx=True)
    with pytest.raises(LoadFailed, match=r"model\.onnx and program\.pt2; set 'backend' in \[text\]"):
        open_backend(task(folder), backend_factory)
    got: list[Any] = []
    for name in ("onnx", "torch"):
        backend = open_backend(task(folder, text={"backend": name}), backend_factory)
        assert type(backend) is TextBackend
        got.append(backend.run(column("late train", "", "🚆 " * 50))[OUTPUT])
        backend.close()
    np.testing.assert_allclose(got[0], got[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(got[0][2], eager("🚆 " * 50), rtol=0, atol=1e-5)


def test_bad_bytes_name_the_row_and_fail_nobody_else(watched: tuple[TextBackend, Watched]) -> None:
    backend, _ = watched
    with pytest.raises(InputsUnfit, match=r"input 'text', row 1, is no UTF-8 text: invalid start byte at byte 2"):
        backend.run(column("late", b"ab\xff"))
    assert backend.run(column("late", ""))[OUTPUT].shape == (2, 8)


def test_a_text_that_is_too_long_to_look_at_is_refused(folder: Path) -> None:
    backend = open_backend(task(folder, text={"max_bytes": 10}), backend_factory)
    assert backend.run(column("late train"))[OUTPUT].shape == (1, 8)
    with pytest.raises(InputsUnfit, match=r"input 'text', row 0: 11 bytes; at most 10 are tokenized"):
        backend.run(column("late trains"))


@pytest.mark.parametrize(("most", "said", "expected"), [(None, 6, 6), (9, 6, 6), (9, 0, 9), (None, 0, 24), (40, 0, 40)])
def test_where_texts_are_cut(tmp_path: Path, most: int | None, said: int, expected: int) -> None:
    """By the settings, else by the tokenizer's file, else at the last bucket; that number is the last bucket in any case."""
    folder = put(tmp_path / "1", most=most, pads=False)
    factory, made = over(Watched)
    backend = open_backend(task(folder, text={"token_buckets": [4, 8, 24], "max_tokens": said}), factory)
    assert made[0].sizes[-1] == (1, expected)
    long = "late train on time " * 20
    np.testing.assert_allclose(backend.run(column(long))[OUTPUT][0], eager(long, expected), rtol=0, atol=1e-5)


def test_a_tokenizer_that_pads_in_front(tmp_path: Path) -> None:
    backend = open_backend(task(put(tmp_path / "1", left=True)), (over(Watched))[0])
    seen: list[Mapping[str, Array]] = []
    inner: Any = backend._inner
    inner.run = lambda inputs: seen.append(inputs) or inner.inner.run(inputs)  # type: ignore[func-returns-value]
    backend.run(column("late train"))
    assert seen[0]["input_ids"].tolist() == [[0] * 12 + [2, 4, 5, 3]]
    assert seen[0]["attention_mask"].tolist() == [[0] * 12 + [1] * 4]


def test_types_of_tokens_are_given_to_whom_takes_them(tmp_path: Path) -> None:
    factory, made = over(Typed)
    backend = open_backend(task(put(tmp_path / "1")), factory)
    assert backend.run(column("late train", "on"))[OUTPUT].shape == (2, 8)
    assert isinstance(made[0], Typed)
    assert made[0].types[-1].dtype == np.int32
    assert made[0].types[-1].tolist() == [[0] * 16] * 2


class Typed(Watched):
    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        signature = inner.signature
        types = TensorSpec("token_type_ids", "INT32", (-1,))
        self.signature = Signature(signature.model, (*signature.inputs, types), signature.outputs, signature.max_batch)
        self.types: list[Array] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.types.append(inputs["token_type_ids"])
        return super().run({name: array for name, array in inputs.items() if name != "token_type_ids"})


def spec(name: str, shape: tuple[int, ...] = (-1,), datatype: str = "INT64") -> TensorSpec:
    return TensorSpec(name, datatype, shape)


IDS, MASK, VECTOR = spec("input_ids"), spec("attention_mask"), spec("y", (8,), "FP32")


@pytest.mark.parametrize(
    ("inputs", "outputs", "max_batch", "why"),
    [
        ((IDS, MASK), (VECTOR,), 0, "does not batch"),
        ((IDS,), (VECTOR,), 4, "takes input_ids; behind a tokenizer it takes"),
        ((IDS, MASK, spec("image")), (VECTOR,), 4, "takes input_ids, attention_mask, image"),
        ((IDS, spec("attention_mask", datatype="FP32")), (VECTOR,), 4, "input 'attention_mask' is FP32"),
        ((spec("input_ids", (-1, 2)), MASK), (VECTOR,), 4, r"input 'input_ids' is INT64 \[-1, 2\]"),
        ((IDS, MASK), (VECTOR, spec("hidden", (-1, 8), "FP32")), 4, r"output 'hidden' has shape \[-1, 8\]"),
        ((spec("input_ids", (16,)), MASK), (VECTOR,), 4, "takes 16 tokens and the tokenizer gives up to 24: set max_tokens"),
    ],
)
def test_models_that_take_no_texts_are_refused_and_closed(
    folder: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], max_batch: int, why: str
) -> None:
    def changed(inner: Backend) -> Watched:
        watched = Watched(inner)
        watched.signature = Signature("texts", inputs, outputs, max_batch)
        return watched

    factory, made = over(changed)
    with pytest.raises(LoadFailed, match=why):
        open_backend(task(folder), factory)
    assert made[0].closed == 1


def test_a_model_of_one_length_has_one_bucket(tmp_path: Path) -> None:
    folder = put(tmp_path / "1", torch_program=False)
    (folder / "program.pt2").write_bytes(texts.program(tokens=False))
    factory, made = over(Watched)
    backend = open_backend(task(folder, text={"max_tokens": 8}), factory)
    assert made[0].sizes == [(1, 8)]
    np.testing.assert_allclose(backend.run(column("late " * 9))[OUTPUT][0], eager("late " * 9, 8), rtol=0, atol=1e-5)


def test_a_bucket_that_the_model_does_not_take_is_found_by_the_load(tmp_path: Path) -> None:
    folder = put(tmp_path / "1", torch_program=False, most=None)
    (folder / "program.pt2").write_bytes(texts.program(most=16))
    factory, made = over(Watched)
    with pytest.raises(LoadFailed, match=r"1 rows of 24 tokens do not run: .* is 24; the program takes 0 to 16"):
        open_backend(task(folder, **BATCHING), factory)
    assert made[0].closed == 1


def test_a_dead_backend_is_not_taken_for_a_bad_bucket(folder: Path) -> None:
    class Dead(Watched):
        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            raise BackendDead("gone")

    factory, made = over(Dead)
    with pytest.raises(BackendDead, match="gone"):
        open_backend(task(folder), factory)
    assert made[0].closed == 1


def test_settings_that_contradict_what_it_is(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"model\.toml states inputs; a version with tokenizer\.json has one, 'text'"):
        open_backend(task(folder, inputs=[{"name": "text"}]), backend_factory)
    with pytest.raises(LoadFailed, match=r"cannot cut texts to 1 tokens: set max_tokens"):
        open_backend(task(folder, text={"max_tokens": 1}), backend_factory)
    bare = tmp_path / "1"
    bare.mkdir()
    tokenizer().save(str(bare / TOKENIZER_FILE))
    with pytest.raises(LoadFailed, match=r"beside tokenizer\.json there is none of model\.onnx, program\.pt2"):
        open_backend(task(bare), backend_factory)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b"\xff", json.dumps({"version": "1.0"}).encode()])
def test_files_that_are_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    folder = put(tmp_path / "1")
    (folder / TOKENIZER_FILE).write_bytes(content)
    with pytest.raises(LoadFailed, match=r"^tokenizer\.json is no tokenizer: "):
        open_backend(task(folder), backend_factory)


def test_a_panic_in_the_tokenizer_fails_its_batch_alone(folder: Path) -> None:
    class PanicException(BaseException):
        pass

    class Panicking:
        error: BaseException = PanicException("index out of bounds")

        def encode_batch_fast(self, texts: list[str]) -> list[Any]:
            raise self.error

    tokens = Tokens(folder / TOKENIZER_FILE, 0, 24, 100)
    tokens._tokenizer = cast(Any, Panicking())
    with pytest.raises(BackendFailed, match="input 'text' could not be tokenized: index out of bounds"):
        tokens.encode("text", column("late")["text"])
    Panicking.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        tokens.encode("text", column("late")["text"])


def test_the_model_is_got_ready_for_what_will_be_executed(folder: Path) -> None:
    """In every token bucket, which it learns from its inputs, and in every row bucket."""

    class Prepared(Watched):
        def prepare(self, buckets: tuple[int, ...]) -> None:
            self.ready = [(rows, tokens) for tokens in self.signature.pad_sizes for rows in buckets]
            assert self.sizes == []

        def notes(self) -> tuple[str, ...]:
            return ("captured",)

    factory, made = over(Prepared)
    backend = open_backend(task(folder, **BATCHING), factory)
    assert isinstance(made[0], Prepared)
    assert made[0].ready == [(rows, tokens) for tokens in TOKENS for rows in ROWS]
    assert backend.notes() == ("captured",)
    assert open_backend(task(folder), over(Watched)[0]).notes() == ()


@pytest.mark.gpu
def test_texts_on_a_device_are_answered_as_on_the_cpu(folder: Path) -> None:
    """As `test_batches_ahead_are_answered_alike_and_never_wait_for_each_other`, on CUDA, where slots are few."""
    backend = open_backend(task(folder, **BATCHING, torch={"device": "cuda"}), backend_factory)
    assert isinstance(backend, PipelinedText)
    assert backend.device == "cuda:0"
    batches = [["late", "train " * 20, "late train on time 1 2"] * 3, ["", "größe " * 9], ["on time"] * 9] * 4
    with ThreadPoolExecutor(2) as threads:
        for batch, answer in zip(batches, threads.map(lambda batch: backend.run(column(*batch)), batches), strict=True):
            for row, text in zip(answer[OUTPUT], batch, strict=True):
                np.testing.assert_allclose(row, eager(text), rtol=0, atol=1e-3)
    backend.close()

"""Texts behind a server: batched with those of others, each answered as if it were alone, and counted."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.backends.texts import INPUTS, OUTPUT, network, program, put, tokenizer
from tests.server.scrape import scrape
from tests.server.serving import Serving, until

TEXTS = ["", "late train", "on time on time on time on time on time", "größe 列車 🚆 what", "train " * 30] * 6
ONE_THREAD = "max_batch = 8\n[batching]\nbuckets = [1, 4, 8]\n[torch]\nintra_op_threads = 1\n"
SIZES = [4, 8, 24]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("texts")
    put(home / "models" / "texts" / "1")
    text = f"{ONE_THREAD}[text]\ntoken_buckets = {SIZES}\nmax_bytes = 1000\n"
    (home / "models" / "texts" / "model.toml").write_text(text)
    ids = home / "models" / "ids" / "1"
    ids.mkdir(parents=True)
    (ids / "program.pt2").write_bytes(program())
    padded = "".join(f'[[inputs]]\nname = "{name}"\npad_to = {SIZES}\n' for name in INPUTS)
    (ids.parent / "model.toml").write_text(ONE_THREAD + padded)
    running = Serving(home / "models", home, data_plane=plane)
    try:
        yield running
    finally:
        running.stop()


def eager(text: str) -> Any:
    ids = torch.tensor([tokenizer(pads=False).encode(text).ids])
    with torch.inference_mode():
        return network()(ids, torch.ones_like(ids)).numpy()[0]


def text_input(*texts: bytes) -> triton.InferInput:
    made = triton.InferInput("text", [len(texts), 1], "BYTES")
    made.set_data_from_numpy(np.array([[text] for text in texts], dtype=np.object_))
    return made


def test_everybody_gets_his_own_answer(server: Serving) -> None:
    with triton.InferenceServerClient(server.grpc_address) as client, ThreadPoolExecutor(8) as threads:
        config = client.get_model_config("texts", as_json=True)["config"]
        assert (config["backend"], config["platform"]) == ("text", "text")
        answers = threads.map(lambda text: client.infer("texts", [text_input(text.encode())]).as_numpy(OUTPUT), TEXTS)
        for text, answer in zip(TEXTS, answers, strict=True):
            np.testing.assert_allclose(answer, [eager(text)], rtol=0, atol=1e-5)
        together = client.infer("texts", [text_input(*(text.encode() for text in TEXTS[:8]))]).as_numpy(OUTPUT)
        np.testing.assert_allclose(together, [eager(text) for text in TEXTS[:8]], rtol=0, atol=1e-5)
    real = sum(len(tokenizer(pads=False).encode(text).ids) for text in TEXTS + TEXTS[:8])
    # a batch is counted when its answers have left
    until(lambda: counted(server, "texts")[0] == real, "all tokens are counted")
    assert counted(server, "texts")[1] > 0


def test_bytes_that_are_no_text_fail_alone(server: Serving) -> None:
    bad = [b"ok \xff", b"x" * 1001]
    said = [r"input 'text', row 0, is no UTF-8 text", r"1001 bytes; at most 1000 are tokenized"]
    with triton.InferenceServerClient(server.grpc_address) as client, ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(client.infer, "texts", [text_input(bad[turn % 2] if turn % 3 == 0 else b"late train")])
            for turn in range(24)
        ]
        for turn, answer in enumerate(asked):
            if turn % 3 == 0:
                with pytest.raises(InferenceServerException, match=said[turn % 2]) as failed:
                    answer.result(30)
                assert failed.value.status() == "StatusCode.INVALID_ARGUMENT"
            else:
                np.testing.assert_allclose(answer.result(30).as_numpy(OUTPUT), [eager("late train")], rtol=0, atol=1e-5)


def test_token_ids_of_different_lengths_share_a_model(server: Serving) -> None:
    with triton.InferenceServerClient(server.grpc_address) as client, ThreadPoolExecutor(8) as threads:

        def ask(text: str) -> Any:
            ids = np.array([tokenizer(pads=False).encode(text).ids], dtype=np.int64)
            inputs = [triton.InferInput(name, list(ids.shape), "INT64") for name in INPUTS]
            for made, array in zip(inputs, (ids, np.ones_like(ids)), strict=True):
                made.set_data_from_numpy(array)
            return client.infer("ids", inputs).as_numpy(OUTPUT)

        for text, answer in zip(TEXTS, threads.map(ask, TEXTS), strict=True):
            np.testing.assert_allclose(answer, [eager(text)], rtol=0, atol=1e-5)
    real = 2 * sum(len(tokenizer(pads=False).encode(text).ids) for text in TEXTS)
    until(lambda: counted(server, "ids")[0] == real, "all ids and masks are counted")
    assert counted(server, "ids")[1] > 0


def counted(server: Serving, model: str) -> tuple[float, float]:
    """Elements of texts that were executed, and of padding."""
    page = scrape(server)
    labels = frozenset({("model", model), ("version", "1")})
    return page.get(("podium_elements_total", labels), 0.0), page.get(("podium_padding_elements_total", labels), 0.0)

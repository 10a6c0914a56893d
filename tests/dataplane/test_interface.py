import numpy as np

from server.core.tensors import Array
from server.dataplane.interface import Batch, Execution, QueueSnapshot
from tests.dataplane.histories import rules


def batch(inputs: dict[str, Array], spans: list[int], max_batch: int = 8) -> Batch:
    none = np.zeros(len(spans) - 1, np.int64)
    return Batch(
        rules(max_batch=max_batch),
        inputs,
        np.array(spans, np.int64),
        none,
        none,
        none.view(np.uint64),
        "full",
        (),
        Execution(0),
    )


def test_rows_are_the_requests_own_and_padding_is_what_runs_beside_them() -> None:
    made = batch({"X": np.zeros((4, 2), np.int64)}, [0, 1, 3])
    assert (made.rows, made.padded_rows) == (3, 4)


def test_without_batches_or_inputs_nothing_is_padded() -> None:
    whole = batch({"X": np.zeros((7, 2), np.int64)}, [0, 1], max_batch=0)
    assert (whole.rows, whole.padded_rows) == (1, 1)
    assert batch({}, [0, 2, 5]).padded_rows == 5


def test_queues_of_one_version_add_up() -> None:
    assert QueueSnapshot(1, 2, 3) + QueueSnapshot(10, 20, 30) == QueueSnapshot(11, 22, 33)

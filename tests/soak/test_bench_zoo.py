"""Every network of the bench zoo in full, through the backend that serves it: hundreds of megabytes each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bench_zoo.build import contents
from models.bench_zoo.zoo import ZOO, inputs, make
from server.backends import torch_program
from server.backends.base import LoadTask
from server.core.settings import ModelSettings
from server.core.versions import VersionKey

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(ZOO))
def test_full_networks_answer_as_served(name: str, dtype: str, tmp_path: Path) -> None:
    entry = ZOO[name]
    (tmp_path / "program.pt2").write_bytes(contents(name, dtype)["program.pt2"])
    task = LoadTask(VersionKey(name, 1), tmp_path, ModelSettings.model_validate({"max_batch": entry.max_batch}))
    backend = torch_program.open_backend(task)
    given = inputs(entry, 2)
    with torch.inference_mode():
        expected = make(entry, dtype)(*given.values()).numpy()
    got: Any = backend.run({key: tensor.numpy() for key, tensor in given.items()})[entry.output]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 if dtype == "fp32" else 5e-2)
    backend.close()

"""Several instances, and a batch at hand beside the running one: everybody still gets exactly their own rows."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.models import put
from tests.server.serving import Serving, counts, infer_message

FAKE = {
    "inputs": [{"name": "x", "datatype": "INT64", "shape": [2]}],
    "outputs": [{"name": "echo_x", "datatype": "INT64", "shape": [2]}],
}
MODELS = {
    "twin": "max_batch = 4\ninstances = 2\n[warmup]\nruns = 1\n[fake]\nt0_us = 2000.0\n",
    "single": "max_batch = 4\n[queue]\nshare = 0.3\n[warmup]\nruns = 1\n[fake]\nt0_us = 1000.0\n",
}
CALLERS, CALLS = 24, 15


@pytest.mark.parametrize(
    "settings", [{}, {"device_slots": 2}, {"device_slots": 3}, {"device_slots": 2, "overload_order": "density"}]
)
def test_rows_come_back_to_their_callers(tmp_path: Path, settings: dict[str, Any], plane: str) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    for name, text in MODELS.items():
        put(repository, name, 1, {"fake.json": json.dumps(FAKE).encode()}, text)
    serving = Serving(repository, tmp_path, data_plane=plane, **settings)

    async def main() -> None:
        async with grpc.aio.insecure_channel(serving.grpc_address) as channel:
            stub: Any = GRPCInferenceServiceStub(channel)

            async def caller(number: int) -> None:
                model = ("twin", "single")[number % 2]
                for call in range(CALLS):
                    sent = np.array([[number, call]] * (1 + call % 3), np.int64)
                    message = infer_message(model, {"x": ("INT64", list(sent.shape), sent.tobytes())}, id=f"{number}/{call}")
                    response = await stub.ModelInfer(message, timeout=60)
                    assert response.id == message.id
                    assert response.raw_output_contents[0] == sent.tobytes()

            await asyncio.gather(*(caller(number) for number in range(CALLERS)))

    try:
        asyncio.run(main())
        with serving.stub() as stub:
            for model in MODELS:
                success, fail, _, executions = counts(stub, model)
                assert (success, fail) == (CALLERS // 2 * CALLS, 0)
                assert executions < success
            (group,) = stub.ModelConfig(pb.ModelConfigRequest(name="twin")).config.instance_group
            assert group.count == 2
    finally:
        serving.stop()

"""`inference.GRPCInferenceService` over the use cases: decode, ask, encode. Nothing here decides anything.

`ModelInfer` is the hot path: per call one future, no task, no log line, no metrics call. Calls that may take long (Load, Unload)
wait on a thread, never on the loop.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceServicer
from server.core.clock import NS_PER_S, Clock
from server.core.errors import InvalidRequest, PodiumError, Unsupported
from server.service.control import Control
from server.service.predict import Predict
from server.transport import describe
from server.transport.codec import decode, encode
from server.transport.config_override import settings_from_config
from server.transport.hand_over import HandOver
from server.transport.status import code_for

_log = logging.getLogger("podium.door")
Context = grpc.aio.ServicerContext[Any, Any]

EXTENSIONS = ("model_repository", "schedule_policy", "model_configuration", "binary_tensor_data", "parameters", "statistics")
"""What ServerMetadata reports: only what is implemented."""

"""The calls that change what a running server logs and traces: TraceSetting and LogSettings.

Floor 6: messages to values and back; what the values mean is telemetry's business. Texts are Triton's
(triton-inference-server/server, src/grpc/grpc_server.cc, 2026-08).
"""

from collections.abc import Callable

from protos import grpc_service_pb2 as pb
from server.core.errors import InvalidRequest
from server.telemetry.logs import LogControl, LogValue
from server.telemetry.tracer import Tracer


class RuntimeSettings:
    """Answers both calls. `is_ready(model, "")`: whether there is such a model."""

    def __init__(self, tracer: Tracer, log: LogControl, is_ready: Callable[[str, str], bool]) -> None:
        self._tracer = tracer
        self._log = log
        self._is_ready = is_ready

    def trace(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        """Change trace settings, if any are given; those in force then. Raises: InvalidRequest, Unsupported."""
        model = request.model_name
        if model and not self._is_ready(model, ""):
            raise InvalidRequest(f"Request for unknown model : {model}")
        if request.settings:
            self._tracer.change(model, {name: list(given.value) for name, given in request.settings.items()})
        response = pb.TraceSettingResponse()
        for name, values in self._tracer.values(model).items():
            response.settings[name].value.extend(values)
        return response

    def log(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        """Change log settings, if any are given; those in force then. Raises: InvalidRequest, Unsupported."""
        if request.settings:
            self._log.change({name: _value(given) for name, given in request.settings.items()})
        response = pb.LogSettingsResponse()
        for name, value in self._log.values().items():
            setting = response.settings[name]
            if isinstance(value, bool):
                setting.bool_param = value
            elif isinstance(value, int):
                setting.uint32_param = value
            else:
                setting.string_param = value
        return response


def _value(given: pb.LogSettingsRequest.SettingValue) -> LogValue | None:
    """The value that a setting was given; None where it was given none."""
    chosen = given.WhichOneof("parameter_choice")
    if chosen is None:
        return None
    value: LogValue = getattr(given, chosen)
    return value

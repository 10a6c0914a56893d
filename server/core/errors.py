"""The closed list of things that go wrong, in the words of the domain. **Pure.**

Every error a caller can be shown derives from `PodiumError` and carries the exact text the caller reads. One file
(`server.transport.status`) maps these classes to gRPC codes; any other exception that reaches the door is a bug and is
answered INTERNAL. Texts follow NVIDIA Triton's where a client may match on them.
"""


class PodiumError(Exception):
    """Base of the closed list. `str(error)` is what the caller is told."""


class InvalidRequest(PodiumError):
    """The call itself is wrong: repeating it unchanged fails again."""


class NotFound(PodiumError):
    """No such model, version or alias."""


class AlreadyExists(PodiumError):
    """What the caller wants to create is there already."""


class NotReady(PodiumError):
    """The version exists but does not serve at this moment."""


class Overloaded(PodiumError):
    """A queue or an in-flight limit is full: nothing was executed.

    `retry_after_s`: when trying again makes sense, where whoever raises it knows.
    """

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Expired(PodiumError):
    """The deadline passed, or was predicted to pass, before execution: nothing was executed."""


class Cancelled(PodiumError):
    """The caller took the request back."""


class Unsupported(PodiumError):
    """A valid request for something this server or this machine does not do."""


class ShuttingDown(PodiumError):
    """The server is draining and admits nothing new."""


class Unauthenticated(PodiumError):
    """The call does not say who makes it, in a way that this server believes."""


class PermissionDenied(PodiumError):
    """It is known who calls, and this is not for them."""


class Restricted(PodiumError):
    """The call lacks the header that its group of calls is restricted to."""


class BackendFailed(PodiumError):
    """Executing this request failed; the backend itself is able to go on."""


class InputsUnfit(BackendFailed):
    """The model cannot take these inputs, though they have its types and shapes: the caller's mistake, which only an
    execution can find."""


class OutOfDeviceMemory(BackendFailed):
    """The device had too little memory for this batch; a smaller one may fit."""


class BackendDead(BackendFailed):
    """The backend can execute nothing any more: its version must leave READY."""


class DeviceLost(BackendDead):
    """The device can execute nothing any more in this process, for whatever version: only a new process can use it again."""


class SharedMemoryFailed(PodiumError):
    """A caller's shared memory cannot be opened, read or written, or is too small for what belongs into it."""


class FeaturesUnavailable(PodiumError):
    """Features of this request are not there, and its model's contract forbids a default in their place."""


class InvalidValues(PodiumError):
    """Values of this request break a constraint of its model. It is found where whole batches are looked at, and counted with
    them: no `InvalidRequest`, which never comes so far."""


class LoadFailed(PodiumError):
    """A version could not be brought into service; the text says which check failed.

    `device_lost`: the device that was found to be lost, if that was why.
    """

    def __init__(self, text: str, device_lost: str = "") -> None:
        super().__init__(text)
        self.device_lost = device_lost


class RegistryError(PodiumError):
    """The registry holds something that cannot be trusted or understood (digest, manifest, settings)."""

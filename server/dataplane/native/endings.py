"""How requests that Python decoded end in the native plane, by the names and numbers it has for that. **Pure.**"""

from server.core.clock import NS_PER_S
from server.core.errors import DeviceLost, Expired, NotReady, Overloaded, PodiumError, ShuttingDown
from server.dataplane.interface import QueueClosed

_STOPPING, _FAILED = 2, 3


def unexecuted(refused: int, reason: str, *, staged: bool) -> PodiumError:
    """Why a ticket ended that was admitted and not executed. `refused` is a Refused of ticket.h, `reason` why its queue failed,
    if it did; `staged`: a batch has it. A new one each time: whoever raises it adds a traceback, which leads to its request.
    """
    if refused == _FAILED:
        return DeviceLost(reason) if staged else NotReady(reason)
    return ShuttingDown("Server is stopping") if refused == _STOPPING else Expired("Request timeout expired")


def not_admitted(outcome: str, ns: int, count: int) -> PodiumError:
    """Why a ticket was not admitted: an Outcome of plane.h by its name, with the numbers that came with it."""
    match outcome:
        case "queue_full":
            return Overloaded("Exceeds maximum queue size", ns / NS_PER_S or None)
        case "too_many_requests":
            return Overloaded(f"Exceeds maximum queue size: {count} requests are in flight in this server")
        case "too_many_bytes":
            return Overloaded(f"Exceeds maximum queue size: {count} bytes of inputs are in flight in this server")
        case "passed":
            return Expired("Request timeout expired")
        case "predicted":
            return Expired(f"Request timeout expired: predicted to finish {ns / 1e6:.3f} ms after its deadline")
        case "closed":
            return QueueClosed("the version has just left service")
        case _:
            return ShuttingDown("Server is stopping, scheduler for model has stopped accepting new inference requests")

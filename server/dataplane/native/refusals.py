"""What the native plane says of a ticket that it did not admit, or ended, in the words of the domain. **Pure.**"""

from server.core.clock import NS_PER_S
from server.core.errors import Expired, Overloaded, PodiumError, ShuttingDown
from server.dataplane.interface import QueueClosed


def refusal(outcome: str, ns: int, count: int) -> PodiumError:
    """Why a ticket was not admitted. `ns` and `count`: see Entered (server/dataplane/native/src/plane.h)."""
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


def ended(*, stopping: bool) -> PodiumError:
    """Why a ticket that waited was never executed."""
    return ShuttingDown("Server is stopping") if stopping else Expired("Request timeout expired")

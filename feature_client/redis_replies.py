"""What a Redis server's refusals mean to whoever has to act on them. **Pure.**"""

from feature_client.errors import StoreError

ELSEWHERE = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN"})
"""Refusals by which a node of a cluster says that keys are not, or no longer, with it."""

_HINTS = {
    "NOAUTH": "it wants a password: put the user and the password into the URL",
    "WRONGPASS": "the user or the password in the URL is wrong",
    "NOPERM": "the user needs the rights +mget +get +set +eval +evalsha +getrange +ping, on the project's keys",
    "LOADING": "it is still loading its rows, and will answer when it has",
    "OOM": "its memory is full: raise maxmemory, or let it evict",
    "READONLY": "it is a replica: the URL must name a primary",
    "MISCONF": "it cannot save to its disk, and takes no rows until it can",
    "MASTERDOWN": "it is a replica that has lost its primary",
    "BUSY": "somebody's script keeps it busy",
    "CROSSSLOT": "it is a node of a cluster: its URL starts with redis+cluster:// or rediss+cluster://",
    "CLUSTERDOWN": "its cluster does not serve all slots; with cluster-require-full-coverage no it serves what is left",
    "TRYAGAIN": "the slot is being moved",
    "ASK": "the slot is being moved",
}


def code_of(refusal: str) -> str:
    """The word that a refusal starts with.

    >>> code_of("MOVED 3999 10.0.0.7:6381")
    'MOVED'
    """
    return refusal.partition(" ")[0]


def refused(name: str, refusal: str, *, cluster: bool = False) -> StoreError:
    """The error for what the server at `name` answered. `cluster`: whether the caller knows it to be a node of one.

    >>> str(refused("redis://a:6379/0", "LOADING Redis is loading"))
    'redis://a:6379/0 refused: LOADING Redis is loading (it is still loading its rows, and will answer when it has)'
    """
    code = code_of(refusal)
    if code == "MOVED":
        hint = "the slot has moved; where to is being asked" if cluster else _HINTS["CROSSSLOT"]
    else:
        hint = _HINTS.get(code, "")
    return StoreError(f"{name} refused: {refusal}" + (f" ({hint})" if hint else ""))

"""Which GPU a CUDA device number means in this process, by its UUID. **Pure.**

Floor 2. CUDA numbers the devices that `CUDA_VISIBLE_DEVICES` lets a process see, in that variable's order; the driver's
library knows all of them, in the order of their places on the bus. Source: CUDA C++ Programming Guide, "CUDA Environment
Variables".
"""

from collections.abc import Sequence

_MIG = "MIG-"


def visible(setting: str | None, uuids: Sequence[str]) -> list[str]:
    """The UUIDs of a process's CUDA devices by their number. `uuids`: of all GPUs, as numbers in `setting` count them.

    A setting may name numbers, UUIDs or beginnings of them, and MIG devices; the first name of nothing ends it, one device
    named twice leaves none. None: every GPU.

    >>> visible("GPU-b,0", ["GPU-a1", "GPU-b2"])
    ['GPU-b2', 'GPU-a1']
    """
    if setting is None:
        return list(uuids)
    chosen: list[str] = []
    for name in setting.split(","):
        uuid = _one(name.strip(), uuids)
        if uuid is None:
            break
        chosen.append(uuid)
    return chosen if len(set(chosen)) == len(chosen) else []


def by_number(setting: str | None) -> bool:
    """Whether a setting leaves it to CUDA which GPU comes first: it says nothing, or numbers.

    >>> by_number("0,1"), by_number("GPU-a1"), by_number(None), by_number("")
    (True, False, True, False)
    """
    return setting is None or setting.split(",")[0].strip().isdecimal()


def _one(name: str, uuids: Sequence[str]) -> str | None:
    if name.isdecimal():
        return uuids[int(name)] if int(name) < len(uuids) else None
    if name.startswith(_MIG):
        return name  # the management library finds it by this name, and knows whether it is there
    matching = [uuid for uuid in uuids if name and uuid.startswith(name)]
    return matching[0] if len(matching) == 1 else None

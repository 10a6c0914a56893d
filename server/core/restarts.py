"""How often one process has begun anew because a device was lost, as a text that survives the new beginning. **Pure.**

Floor 1. The process replaces its program and keeps its number, its place under a supervisor and its environment: what it must
remember is in one variable of that.
"""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

VARIABLE = "PODIUM_DEVICE_RESTARTS"
_KEPT = 100
"""More instants are not remembered: as many restarts as any setting allows within its window."""


class _Text(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    process: int
    total: Annotated[int, Field(ge=0)]
    at_ns: Annotated[list[int], Field(max_length=_KEPT)]
    reason: str
    handed: Annotated[int, Field(ge=-1)]


@dataclass(frozen=True, slots=True)
class Restarts:
    """`process` is the number of the process they are of. Units: monotonic ns, oldest first; `reason` of the last one.
    `handed`: the open file with what the life before has handed on; -1 where that is nothing.
    """

    process: int
    total: int = 0
    at_ns: tuple[int, ...] = ()
    reason: str = ""
    handed: int = -1

    @classmethod
    def of(cls, text: str | None, process: int) -> Self:
        """What a variable says of this process; nothing where it is not there, damaged, or inherited from another process.

        >>> Restarts.of('{"process": 7, "total": 2, "at_ns": [5, 9], "reason": "cuda:0", "handed": -1}', 7).total
        2
        """
        try:
            found = _Text.model_validate_json(text or "")
        except ValidationError:
            return cls(process)
        if found.process != process:
            return cls(process)
        return cls(process, found.total, tuple(found.at_ns), found.reason, found.handed)

    def text(self) -> str:
        """What the variable is set to."""
        made = _Text(process=self.process, total=self.total, at_ns=list(self.at_ns), reason=self.reason, handed=self.handed)
        return made.model_dump_json()

    def another(self, now_ns: int, reason: str, handed: int = -1) -> Self:
        """One more."""
        return type(self)(self.process, self.total + 1, (*self.at_ns, now_ns)[-_KEPT:], reason, handed)

    def within(self, now_ns: int, window_ns: int) -> int:
        """How many there were in the last `window_ns`. Instants yet to come are of another boot of the machine."""
        return sum(now_ns - window_ns < at_ns <= now_ns for at_ns in self.at_ns)

"""Rows as commands that write them: newest wins, judged where the row is. **Pure.**

The comparison runs in the server, in one script for several rows, because reading first and writing then would let two writers
overtake each other.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from feature_client.store import Key, Row

SCRIPT = b"""\
local function earlier(a_high, a_low, b_high, b_low)
  return a_high < b_high or (a_high == b_high and a_low < b_low)
end
local written = 0
for i, key in ipairs(KEYS) do
  local row, expire = ARGV[2 * i - 1], ARGV[2 * i]
  local held = redis.call('GETRANGE', key, 16, 31)
  local stays = false
  if #held == 16 then
    local hl, hh, al, ah = struct.unpack('<I4i4I4i4', held)
    local nl, nh, bl, bh = struct.unpack('<I4i4I4i4', string.sub(row, 17, 32))
    stays = earlier(nh, nl, hh, hl) or (nh == hh and nl == hl and earlier(bh, bl, ah, al))
  end
  if not stays then
    if expire == '0' then
      redis.call('SET', key, row)
    else
      redis.call('SET', key, row, 'PX', expire)
    end
    written = written + 1
  end
end
return written
"""
"""Instants are compared in halves: a number of Lua is a double, and holds no more than 53 bits of an int64."""
SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()

ROWS_OF_A_SCRIPT = 32
ROW_BYTES_OF_A_SCRIPT = 32 * 1024
"""What one run of the script writes at most: readers wait while it runs, 32 rows of 248 bytes for 0.1 to
0.25 ms (Valkey 9.1, one core of a busy machine, November 2026)."""


@dataclass(frozen=True)
class Command:
    """One command: its words, about how many bytes they are, and how many rows it writes."""

    words: tuple[bytes | str | int, ...]
    size: int

    @property
    def in_full(self) -> "Command":
        """The same with the script itself, for a server that does not know it yet."""
        return Command(("EVAL", SCRIPT, *self.words[2:]), self.size + len(SCRIPT))


def commands_of(rows: Sequence[tuple[Key, Row]], expire_ms: Sequence[int]) -> Iterator[Command]:
    """Commands that write these rows, in order, all of them in one slot where there are slots. `expire_ms`: each one's, or 0.

    Each is answered by the number of rows it wrote.
    """
    first, size = 0, 0
    for index, (key, row) in enumerate(rows):
        more = len(key) + len(row)
        if index > first and (index - first == ROWS_OF_A_SCRIPT or size + more > ROW_BYTES_OF_A_SCRIPT):
            yield _script(rows[first:index], expire_ms[first:index], size)
            first, size = index, 0
        size += more
    if len(rows) > first:
        yield _script(rows[first:], expire_ms[first:], size)


def _script(rows: Sequence[tuple[Key, Row]], expire_ms: Sequence[int], size: int) -> Command:
    arguments = [word for (_, row), expire in zip(rows, expire_ms, strict=True) for word in (row, expire)]
    return Command(("EVALSHA", SHA, len(rows), *(key for key, _ in rows), *arguments), size)

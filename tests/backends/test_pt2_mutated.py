"""Damaged programs: a thousand byte flips and a thousand changes to the JSON either load and run, or are refused as such.

The work is done in a process of its own: a crash inside torch would be seen as one.
"""

import subprocess
import sys
from pathlib import Path

from tests.backends.programs import small

ROOT = Path(__file__).parents[2]
MUTATE = """
import io, json, random, sys, warnings
from pathlib import Path
import numpy as np
from server.backends.base import LoadTask
from server.backends.torch_program import open_backend
from server.core.errors import BackendFailed, LoadFailed
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from tests.backends.programs import archived, records

warnings.simplefilter("error")
calls = []
WATCHED = {"os.system", "subprocess.Popen", "pickle.find_class", "ctypes.dlopen", "os.exec", "socket.connect"}

def watch(event, arguments):
    # modules that torch imports when they are first needed are executed too, but they have a file
    if event in WATCHED or (event == "exec" and arguments[0].co_filename.startswith("<")):
        calls.append(event)

sys.addaudithook(watch)
folder = Path(sys.argv[1])
valid = (folder / "program.pt2").read_bytes()
found = records(valid)
inputs = {"codes": np.zeros((2, 1), np.int64), "numbers": np.zeros((2, 2), np.float32)}
chance = random.Random(11)
SCRAPS = [None, True, -1, 0, 2**63, 10**30, 0.5, "", "x", "NaN", "__class__", "s0", [], {}, [[]], {"as_int": -1},
          {"as_none": True}, {"name": "sigmoid"}, "torch.ops.aten.add.Tensor", "../../x", "weight_1"]

def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))

def at(value, path):
    for key in path:
        value = value[key]
    return value

def flipped():
    content = bytearray(valid)
    for _ in range(chance.choice((1, 1, 2, 8))):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content[: chance.randrange(len(content))] if chance.random() < 0.05 else content)

def rewritten(name, all_places):
    parsed = json.loads(found[name])
    for _ in range(chance.choice((1, 1, 1, 3))):
        path = chance.choice(all_places)
        try:
            holder, key = at(parsed, path[:-1]), path[-1]
            if chance.random() < 0.3:
                del holder[key]
            elif chance.random() < 0.4:
                holder[key] = at(parsed, chance.choice(all_places))
            else:
                holder[key] = chance.choice(SCRAPS)
        except (LookupError, TypeError):
            pass
    try:
        return archived({**found, name: json.dumps(parsed).encode()})
    except (ValueError, RecursionError):  # an object within itself is no JSON
        return valid

JSON = [name for name in found if name.endswith(".json")] + ["models/model.json"] * 5
PLACES = {name: [path for path in places(json.loads(found[name])) if path] for name in JSON}
counts = {"refused": 0, "failed": 0, "ran": 0}
for index in range(2000):
    name = chance.choice(JSON)
    (folder / "program.pt2").write_bytes(flipped() if index % 2 else rewritten(name, PLACES[name]))
    calls.clear()
    try:
        backend = open_backend(LoadTask(VersionKey("m", 1), folder, ModelSettings()))
    except LoadFailed as error:
        assert str(error).startswith("program.pt2: ") and len(str(error)) < 1000, error
        counts["refused"] += 1
    else:
        try:
            backend.run({name: array for name, array in zip((spec.name for spec in backend.signature.inputs), inputs.values())})
            counts["ran"] += 1
        except (BackendFailed, KeyError):
            counts["failed"] += 1
        backend.close()
    assert not calls, calls
print(json.dumps(counts))
"""


def test_damaged_programs_are_refused_or_run_and_execute_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "program.pt2").write_bytes(small(podium='{"outputs": ["p"]}'))
    command = [sys.executable, "-c", MUTATE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    assert '"refused": ' in done.stdout

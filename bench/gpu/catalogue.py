"""Which models a matrix measures, and how each is brought about: by a recipe, or as a fake device with given times."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FakeTimes(_Strict):
    """A batch of b rows takes `t0_us + row_us * b`."""

    t0_us: float = Field(ge=0)
    row_us: float = Field(ge=0)


class ModelPlan(_Strict):
    """One model, and the load it is put under.

    Exactly one of `recipe` (arguments of Python that write a repository into `--out`) and `fake` (with `max_batch` and the
    `width` of its one FP32 input) brings it about. Each request has one row. `in_flight` bounds what is open over all
    `connections` and `clients` (processes). `required` replaces the common numbers of `bench.gpu.ratios`.
    """

    name: str
    recipe: tuple[str, ...] = ()
    fake: FakeTimes | None = None
    max_batch: int = Field(0, ge=0)
    width: int = Field(16, gt=0)
    target_p99_ms: float = Field(gt=0)
    deadline_ms: float = Field(gt=0)
    in_flight: int = Field(gt=0)
    connections: int = Field(gt=0)
    clients: int = Field(1, gt=0)
    tolerance: float = Field(1e-5, gt=0)
    required: dict[str, float] | None = None


class Catalogue(_Strict):
    """`assumed`: the devices' times are nobody's measurement. `on`: what names of its devices begin with; nothing else
    counts as one."""

    assumed: bool
    on: str = ""
    model: tuple[ModelPlan, ...]


def catalogue(path: Path) -> Catalogue:
    """Read a catalogue. Raises: ValueError (pydantic's, tomllib's) for one that is wrong."""
    read = Catalogue.model_validate(tomllib.loads(path.read_text("utf-8")))
    for plan in read.model:
        if bool(plan.recipe) == (plan.fake is not None) or (plan.fake and not plan.max_batch):
            raise ValueError(f"{path.name}: {plan.name} needs a recipe, or fake times and max_batch")
    return read


def build(plan: ModelPlan, repository: Path, limit_s: float) -> None:
    """Write the model into a repository. Raises: RuntimeError with what the recipe said, subprocess.TimeoutExpired."""
    if plan.fake is not None:
        _write_fake(plan, plan.fake, repository)
        return
    command = [sys.executable, *plan.recipe, "--out", str(repository)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=limit_s)
    if done.returncode:
        raise RuntimeError(f"{' '.join(plan.recipe)}: {(done.stderr or done.stdout)[-2000:].strip()}")
    newest_version(repository, plan.name)


def newest_version(repository: Path, model: str) -> Path:
    """Its folder. Raises: RuntimeError where the model has none."""
    found = [path for path in (repository / model).glob("*") if path.name.isdigit()]
    if not found:
        raise RuntimeError(f"no version of {model} was built")
    return max(found, key=lambda path: int(path.name))


def _write_fake(plan: ModelPlan, times: FakeTimes, repository: Path) -> None:
    version = repository / plan.name / "1"
    version.mkdir(parents=True)
    tensors = {
        "inputs": [{"name": "IN", "datatype": "FP32", "shape": [plan.width]}],
        "outputs": [{"name": "OUT", "datatype": "INT64", "shape": [1]}],
    }
    (version / "fake.json").write_text(json.dumps(tensors))
    (version.parent / "model.toml").write_text(
        f'backend = "fake"\nmax_batch = {plan.max_batch}\n[fake]\ndevice = "accelerator"\n'
        f"t0_us = {times.t0_us}\nrow_us = {times.row_us}\n"
    )

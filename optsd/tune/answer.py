"""The answers of searches, `expected/tuned/<machine>.json`, and what `tuned` means here. Imports no torch."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optsd import models
from optsd.errors import BadInput, NotFound
from optsd.files import parse_json, read_text, write_atomically
from optsd.judge.expectations import identity, machine_name
from optsd.measure import environment, gpus
from optsd.records import Workload, dumps
from optsd.variants import canonical
from optsd.workloads import device_name, dtype_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TUNED = "tuned"
SCHEMA = 1
EXPECTED = Path("expected")


def answer_file(expected: Path, machine: dict[str, Any], device: str) -> Path:
    """Where the answers of a machine are; `device` is `cpu` or `cuda`."""
    return expected / TUNED / f"{machine_name(machine, device)}.json"


def record(
    expected: Path,
    machine: dict[str, Any],
    workload: Workload,
    variant: str,
    proof: dict[str, Any],
    fewer_steps: int | None = None,
) -> Path:
    """Write the answer for this model, device and type in place of the one before; the others stay. Its file.

    `fewer_steps`: how many the answer takes, where that is not the workload's number.
    """
    file = answer_file(expected, machine, workload.device)
    rows = _read(file) if file.exists() else []
    own = {
        "model": workload.model,
        "variant": variant,
        "workload": asdict(workload),
        "identity": identity(machine, workload.device),
        **({"fewer_steps": fewer_steps} if fewer_steps else {}),
        **proof,
    }
    others = [row for row in rows if _place(row) != _place(own)]
    rows = sorted([*others, own], key=_place)
    write_atomically(file, dumps({"schema": SCHEMA, "machine": machine_name(machine, workload.device), TUNED: rows}))
    return file


def variant_for(model: str, device: str, dtype: str, expected: Path = EXPECTED) -> str:
    """The variant that was found for this model here. `device`: `cuda:1`; `dtype` may be `auto`: any.

    Raises NotFound where nothing was tuned, BadInput where the machine is no longer what it was: another driver,
    another torch, another number of threads. Warns where the answer takes fewer steps, which whoever draws has to ask
    for.
    """
    kind = device.partition(":")[0]
    machine = environment.machine(device)
    file = answer_file(expected, machine, kind)
    remedy = f"run there: optsd tune --model {model}"
    if not file.exists():
        raise NotFound(f"nothing was tuned on this machine: there is no {file}", remedy)
    for row in _read(file):
        if row["model"] == model and dtype in ("auto", row["workload"]["dtype"]):
            now = identity(machine, kind)
            # Where torch is not imported yet it tells no number of threads.
            if other := next((name for name, was in row["identity"].items() if now.get(name) not in (was, None)), None):
                raise BadInput(f"{file} is of {other} {row['identity'][other]}, here it is {now[other]}", remedy)
            if steps := row.get("fewer_steps"):
                asked = f"num_inference_steps={steps}, or --steps {steps}"
                warnings.warn(f"what was tuned for {model} takes {steps} steps: ask for them ({asked})", stacklevel=2)
            return row["variant"]
    raise NotFound(f"{file} has nothing for {model} in {dtype}", remedy)


def resolved(
    given: Sequence[str] | None, model: str, device: str, dtype: str, expected: Path = EXPECTED
) -> list[str] | None:
    """What `--variant` says, with the variant that was found here in place of `tuned`. Raises as `variant_for` does."""
    names = [name.strip() for group in given or () for name in group.split(",")]
    if TUNED not in names:
        return None if given is None else list(given)
    if device.startswith("estimate"):
        raise BadInput("tuned is what was found on a machine, and an estimate has none", "name the variant itself")
    place = device_name(device)
    if place == "auto":  # without torch, which the benches do not import so early: as the machine's file is called
        place = "cuda" if gpus.found() else "cpu"
    found = variant_for(models.check(model).name, place, dtype_name(dtype), expected)
    return [found if name == TUNED else name for name in names]


def tuned(model: str, device: Any, dtype: Any) -> "DiffusionPipeline":
    """The pipeline with the variant that was found, as it was measured. Raises as `variant_for` does."""
    source = models.check(model)
    place = models.resolve_device(device)
    name = str(models.resolve_dtype(dtype, place, source)).removeprefix("torch.")
    return models.build(model, variant_for(source.name, str(place), name), place, name)[0]


def _place(row: dict[str, Any]) -> tuple[str, str]:
    return row["model"], row["workload"]["dtype"]


def _read(file: Path) -> list[dict[str, Any]]:
    """Raises BadInput for what is no such file, or names a variant that is none."""
    remedy = "remove it, and run optsd tune again"
    data = parse_json(read_text(file, remedy), str(file), remedy)
    rows = data.get(TUNED) if isinstance(data, dict) and data.get("schema") == SCHEMA else None
    try:
        for row in rows:  # type: ignore[union-attr]
            canonical(row["variant"])
            if not all(isinstance(value, str) for value in _place(row)) or not isinstance(row["identity"], dict):
                raise TypeError("a row is none")
    except (TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{file} is no file of optsd tune, schema {SCHEMA}", remedy) from error
    return rows  # type: ignore[return-value]

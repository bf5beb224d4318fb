"""One request: the model, the candidates, the search, and what is written down of it."""

import time
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any

from optsd import models
from optsd.errors import BadInput
from optsd.files import check_writable, home
from optsd.judge.expectations import identity
from optsd.measure import environment
from optsd.models import Source
from optsd.records import Workload
from optsd.tune import answer, candidates, mixed, telling
from optsd.tune.found import Found
from optsd.tune.journal import Journal
from optsd.tune.request import Request
from optsd.tune.search import BASELINE, Ask, Candidate, Search, block_of
from optsd.variants import canonical

PROMPTS = 1000
"""How many the standard set has."""


def search(request: Request) -> Found:
    """Search, until the answer is clear, the time is up, or Ctrl-C: then what is known so far is the answer.

    Raises BadInput and NotFound for what is wrong with the request.
    """
    began = time.monotonic()
    source = models.check(request.model)
    demands = request.demands(source)
    names = tuple(dict.fromkeys(name for name in map(canonical, request.variants) if name != BASELINE))
    if request.variants and not names:
        raise BadInput("the baseline alone is no search", "name other variants, or leave --variant out")

    from optsd.measure.run import timing_prompts
    from optsd.measure.seeds import fix_seeds
    from optsd.quality.generate import code_version, fingerprint
    from optsd.quality.session import setting
    from optsd.quality.store import Store, hash_of
    from optsd.tune.measured import READ, Measured

    say = request.say
    say(f"loading {source.name}")
    fix_seeds()
    device = models.resolve_device(request.device)
    workload = _workload(request, source, device)
    pipe = models.load(source.location, device, workload.dtype, text_to_image=True)
    weights = fingerprint(pipe)
    machine = environment.machine(str(device))
    known = {
        "workload": asdict(workload),
        "weights": weights,
        "code": code_version(),
        "demands": sorted(one.metric for one in demands),
        "machine": identity(machine, device.type),
    }
    folder = request.output or Path("reports") / "tune" / f"{source.name}-{hash_of(known)[:8]}"
    check_writable(folder, "--output")
    store = Store(home() / "images")
    sheet = _data_sheet(machine, workload.device)
    trace = cache(partial(_estimate, source, workload, sheet))
    bounded = candidates.bounded(trace, request.memory, sheet not in ("", "cpu"))
    why_not = candidates.first_of(candidates.checked(pipe), *([bounded] if sheet else []))
    journal = Journal(folder / "journal.jsonl", known)
    try:
        by_layer = mixed.Proposed()
        if not names:
            say("what each kind of layer costs, quantized alone")
            prompts = timing_prompts(workload.model, 1)
            goal = request.goal if request.memory is None else "memory"
            budget_s = mixed.SHARE * request.time_budget_s
            by_layer = mixed.proposed(pipe, workload, prompts, goal, budget_s, journal)
        mixtures = tuple(one.name for one in by_layer.mixtures)
        offered = candidates.candidates(names, request.allow, workload.steps, why_not, mixtures)
        del pipe
        images = _images(request, Ask(demands), offered, block_of(workload.batch_size))
        judged = setting(workload, images, store=store)
        for one in demands:
            if one.metric in READ:
                judged.networks.made_by(READ[one.metric])  # weights that are missing are said to be so now
        bench = Measured(
            source.location,
            str(device),
            workload,
            tuple(one.metric for one in demands),
            judged,
            weights,
            store,
            journal,
            began + request.time_budget_s,
            say,
        )
        made = Search(request.ask(source, images), offered, bench, candidates.joiner(why_not), say)
        interrupted = False
        try:
            made.run()
        except KeyboardInterrupt:
            interrupted = True
        technique = file = None
        if best := made.winner:
            say(f"{best.name}: the proof")
            technique = bench.evidence(best.name)
            variant, steps = candidates.split(best.name)
            file = answer.record(request.expected, machine, workload, variant, proof(made), steps)
        took_s = time.monotonic() - began
        found = Found(
            request, workload, machine, made, technique, folder, file, took_s, journal.added, by_layer, interrupted
        )
        say("writing the report")
        telling.write(found, bench)
        return found
    finally:
        journal.close()


def proof(made: Search) -> dict[str, Any]:
    """What is known of the winner, as its file has it."""
    best = made.winner
    if best is None:
        return {}
    low, high = best.speed_bounds()
    kept = {one.metric: (one.share, best.kept(one)) for one in made.ask.demands}
    return {
        "asked": asdict(made.ask),
        "speedup": {"value": best.speedup, "low": low, "high": min(high, 1e6), "rounds": len(best.ratios)},
        "kept": {
            name: {"asked": share, "value": found.share, "low": found.low, "pictures": found.pictures}
            for name, (share, found) in kept.items()
        },
        "quality": best.quality,
        "complete": made.complete,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _workload(request: Request, source: Source, device: Any) -> Workload:
    preset = request.preset

    def either(given: Any, otherwise: Any) -> Any:
        return otherwise if given is None else given

    width, height = request.size or preset.size or source.size
    return Workload(
        source.name,
        device.type,
        str(models.resolve_dtype(request.dtype, device, source)).removeprefix("torch."),
        either(request.steps, preset.steps),
        either(request.guidance, preset.guidance),
        height,
        width,
        either(request.batch_size, preset.batch_size),
        request.seed,
    )


def _images(request: Request, ask: Ask, offered: list[Candidate], block: int) -> int:
    """Pictures of a candidate at most: so many that one that loses a little can be shown to keep what was asked."""
    fewest = Search(ask, offered, bench=None).fewest_pictures  # type: ignore[arg-type]
    images = min(request.images or 2 * fewest, PROMPTS)
    return max(images - images % block, block)


def _data_sheet(machine: dict[str, Any], device: str) -> str:
    """What bounds are reckoned for: "cpu", of which memory alone is known, a GPU's name, or "" for one without."""
    from optsd.estimate import devices

    return devices.recognize(str(machine["gpus"][0].get("name"))) if device == "cuda" else "cpu"


def _estimate(source: Source, workload: Workload, sheet: str, variant: str) -> Any:
    from optsd.estimate import architectures, estimate

    return estimate(architectures.check(source.location).location, variant, workload, sheet)

"""What every variant owes: it touches something, proves it, agrees with the baseline or says that it does not, undoes
or says why not. The variants come from the table in `optsd.variants`, so that a new technique is held to the same."""

import itertools
import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from replays import EXECUTED, executed_here

from optsd.calls import parts
from optsd.errors import OptsdError, Unsupported
from optsd.optimizations.kernels import example_inputs, kernels_seen
from optsd.optimizations.peers import Peer
from optsd.optimizations.step_caches import StepCache
from optsd.patching import Patch
from optsd.quantization.kernels import KERNELS
from optsd.variants import GUIDE_VARIANTS, TECHNIQUES, Variant, against_eager, canonical, parse

NAMES = [canonical(name) for name in TECHNIQUES]
PEERS = [name for name in NAMES if any(isinstance(step, Peer) for step in parse(name).steps)]
TRANSFORMERS_ONLY = [name for name in NAMES if any(isinstance(step, StepCache) for step in parse(name).steps)]
NAMES = [name for name in NAMES if name not in TRANSFORMERS_ONLY]  # tests/optimizations/test_pipelines.py has these
OURS = [name for name in NAMES if name not in PEERS]
COMBINED = [name for name in GUIDE_VARIANTS if "+" in name] + [
    canonical("flash-enhanced+kvcache+deepcache:2+tome"),
    canonical("int8+flash-enhanced+kvcache"),
]
FAMILIES = ("sd15", "sd21", "sdxl", "no-mid")
ONE_OF_EACH_KIND = [
    name
    if name in (*OURS, COMBINED[-1]) and name not in ("sdpa", "int4")
    else pytest.param(name, marks=pytest.mark.whole)
    for name in (*OURS, *COMBINED)
    if name not in EXECUTED
]
DOCUMENT = Path(__file__).parents[2] / "docs" / "techniques.md"


def _ready(name: str) -> Variant:
    """As a bench builds it, but compiled without inductor, which has a test of its own, and replayed without a GPU."""
    variant = against_eager(name)
    return Variant(variant.name, tuple(map(executed_here, variant.steps)))


def _applied(name: str, pipe) -> Patch:
    """Another library's quantizer may be missing, or not run on a CPU, and says so; ours have no such excuse."""
    try:
        return _ready(name).apply(pipe)
    except Unsupported as error:
        if name not in PEERS:
            raise
        pytest.skip(str(error))


def _difference(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error of the whole."""
    return ((output.double() - expected.double()).norm() / expected.double().norm()).item()


def _counts(proof: dict) -> dict[str, float]:
    return {key: value for key, value in proof.items() if isinstance(value, int | float)}


@pytest.mark.parametrize(
    ("name", "family"),
    # Each technique of ours on every family but for those that read one first, seconds each; all else on one.
    [
        pytest.param(name, family, marks=[pytest.mark.whole] * (name in ("sdpa", "int4") and family != FAMILIES[0]))
        for name in OURS
        for family in FAMILIES
        if name not in EXECUTED
    ]
    + [(name, FAMILIES[0]) for name in ("graph", *PEERS, *COMBINED)]
    + [pytest.param("compile", FAMILIES[0], marks=pytest.mark.whole)],
)
def test_a_unet_of_any_family(small_unet, bare, denoise, name, family):
    unet = small_unet(family)
    pipe = bare(unet)
    before = denoise(unet, batch=3, size=(8, 12))
    baseline = against_eager("baseline").apply(pipe)
    expected = denoise(unet, batch=3, size=(8, 12))
    baseline.undo()

    patch = _applied(name, pipe)
    existing = {path for path, _ in unet.named_modules(prefix="unet")} | {"vae"}
    assert patch.touched
    undone = {path for path in patch.touched if path not in existing}
    assert not undone, "touched what is not there"
    idle = patch.proof
    output = denoise(unet, batch=3, size=(8, 12))
    assert json.loads(json.dumps(patch.proof)) == patch.proof
    assert any(value > _counts(idle).get(key, 0) for key, value in _counts(patch.proof).items()), "nothing was counted"
    if _ready(name).exact:
        assert _difference(output, expected) < 1e-4
    else:
        assert output.isfinite().all()
        assert 1e-5 < _difference(output, expected) < 2

    if any(part.why_lossy for part in patch.parts):
        with pytest.raises(OptsdError, match="cannot be undone: .*; load the pipeline again"):
            patch.undo()
        assert torch.equal(denoise(unet, batch=3, size=(8, 12)), output)
    else:
        patch.undo()
        assert torch.equal(denoise(unet, batch=3, size=(8, 12)), before)
        assert not any(parts(module) for module in unet.modules())


@pytest.mark.parametrize(
    ("batch", "dtype", "size", "tolerance"),
    [
        (1, torch.float32, (8, 8), 1e-4),
        (4, torch.float32, (12, 8), 1e-4),
        (3, torch.bfloat16, (8, 12), 0.05),
    ],
)
@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_batches_types_and_sizes(small_unet, bare, denoise, name, batch, dtype, size, tolerance):
    unet = small_unet().to(dtype)
    baseline = against_eager("baseline").apply(bare(unet))
    expected = denoise(unet, batch=batch, size=size)
    baseline.undo()
    _applied(name, bare(unet))
    output = denoise(unet, batch=batch, size=size)
    assert (output.shape, output.dtype) == (expected.shape, dtype)
    assert _difference(output, expected) < (tolerance if _ready(name).exact else 2)
    if batch == 4 and _ready(name).exact:
        # One of many is what it would be alone: rows of a batch do not see each other.
        again = small_unet()
        against_eager("baseline").apply(bare(again))
        assert _difference(output, denoise(again, batch=4, size=size)) < tolerance


@pytest.mark.parametrize("name", [*ONE_OF_EACH_KIND, *PEERS])
def test_images(untrained, paint, name):
    pipe = untrained()
    against_eager("baseline").apply(pipe)
    expected = paint(pipe, 2)
    pipe = untrained()
    patch = _applied(name, pipe)
    images = paint(pipe, 2)
    levels = ((images * 255).round() - (expected * 255).round()).abs().max().item()
    if _ready(name).exact:
        assert levels <= 1
    assert torch.equal(paint(pipe, 2), images), "a second call does not give the same images"
    assert patch.proof


def _outcome(make_unet, bare, denoise, first: str, second: str) -> str:
    try:
        variant = _ready(f"{first}+{second}")
        unet = make_unet()
        patch = variant.apply(bare(unet))
    except Unsupported as error:
        named = all(_spelled(name) in str(error) for name in (first, second))
        return "refused" if named else f"refused without a name: {error}"
    output = denoise(unet)
    assert patch.touched
    reference = make_unet()
    against_eager("baseline").apply(bare(reference))
    if variant.exact:
        assert _difference(output, denoise(reference)) < 1e-4
        return "exact"
    assert 1e-5 < _difference(output, denoise(reference)) < 2
    return "approximate"


@pytest.fixture
def make(small_unet):
    """A UNet of one block a side, as a pair takes its time to trace."""
    one_block = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    return lambda: small_unet(**one_block, block_out_channels=(32,), layers_per_block=1, mid_block_type=None)


def test_every_pair_combines_or_is_refused_by_name(make, bare, denoise):
    """Applies each pair and writes what came of it as a table, which docs/techniques.md must show."""
    names = [name for name in OURS if name not in EXECUTED]
    pairs = itertools.combinations(names, 2)
    outcomes = {frozenset(pair): _outcome(make, bare, denoise, *pair) for pair in pairs}
    rows = [f"| | {' | '.join(map(_spelled, names))} |", "| --- |" + " --- |" * len(names)]
    for row in names:
        cells = (outcomes.get(frozenset((row, other)), "–") for other in names)
        rows.append(f"| **{_spelled(row)}** | {' | '.join(cells)} |")
    _compare_with_document("pairs", rows)


@pytest.mark.whole
def test_compile_combines_with_every_other(make, bare, denoise):
    names = [name for name in OURS if name not in EXECUTED]
    rows = [f"| | {' | '.join(map(_spelled, names))} |", "| --- |" + " --- |" * len(names)]
    outcomes = (_outcome(make, bare, denoise, name, "compile") for name in names)
    _compare_with_document("compile", [*rows, f"| **compile** | {' | '.join(outcomes)} |"])


def _spelled(name: str) -> str:
    return "eager" if name == "baseline" else name


NO_NATIVE_LAYERS = KERNELS["native"].refusal(torch.device("cpu"), bits=8, groups=1)


@pytest.mark.skipif(
    bool(NO_NATIVE_LAYERS), reason=f"the document is of a CPU with the native kernels: {NO_NATIVE_LAYERS}"
)
def test_a_profile_of_one_step_names_each_variants_kernels(small_unet, bare):
    rows = ["| variant | operators in a profile of one step, and their calls |", "| --- | --- |"]
    for name in (name for name in (*OURS, *COMBINED) if name not in EXECUTED):
        unet = small_unet()
        _ready(name).apply(bare(unet))
        seen = kernels_seen(unet, partial(unet, **example_inputs(unet, 2, (8, 8))))
        assert seen
        rows.append(f"| {name} | {', '.join(f'`{operator}` {calls}' for operator, calls in seen.items())} |")
    _compare_with_document("kernels", rows)


def _compare_with_document(name: str, rows: list[str]) -> None:
    """The lines between `<!-- NAME -->` and `<!-- end of NAME -->`. OPTSD_REGENERATE=1 writes them, and fails."""
    begin, end, table = f"<!-- {name} -->\n", f"<!-- end of {name} -->", "\n".join(rows) + "\n"
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    written, _, after = rest.partition(end)
    if written == table:
        return
    if os.environ.get("OPTSD_REGENERATE") == "1":
        DOCUMENT.write_text(before + begin + table + end + after, encoding="utf-8")
        pytest.fail(f"{DOCUMENT.name}: the table of {name} was written anew; read it, then run again")
    pytest.fail(f"{DOCUMENT.name}: the table of {name} is out of date; run again with OPTSD_REGENERATE=1\n{table}")

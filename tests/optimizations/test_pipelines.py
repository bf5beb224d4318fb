"""Every class of pipeline by every technique of ours: it works and proves it, or says in one line why not.

docs/models.md is made from what is found here.
"""

import json

import pytest
import torch
from replays import executed_here
from small_pipelines import CLASSES, draw, make

from optsd import anatomy
from optsd.calls import parts
from optsd.errors import NothingMatched, OptsdError, Unsupported
from optsd.optimizations import quantize
from optsd.optimizations.peers import Peer
from optsd.optimizations.quantize import Int8
from optsd.variants import TECHNIQUES, Variant, against_eager, canonical, parse

NAMES = [canonical(name if name != "fbcache" else "fbcache:0.5") for name in TECHNIQUES]  # 0.1 spares nothing in noise
OURS = [name for name in NAMES if not any(isinstance(step, Peer) for step in parse(name).steps)]
UNETS = ("SD 1.5", "SD 2.1", "SDXL")
FOR_UNETS = ("kvcache", "deepcache", "tome")
FOR_TRANSFORMERS = ("fbcache", "taylorseer", "pab")
NOT_KNOWN = {"Sana": ("fbcache",)}
"""What diffusers' caches do not serve: see docs/models.md."""
DOCUMENT = "models.md"


def _ready(name: str) -> Variant:
    """As a bench builds it, but compiled without inductor, which takes minutes, and replayed without a GPU."""
    variant = against_eager(name)
    return Variant(variant.name, tuple(map(executed_here, variant.steps)))


def _difference(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error of the whole."""
    return ((output.double() - expected.double()).norm() / expected.double().norm()).item()


def _counts(proof: dict) -> dict[str, float]:
    return {key: value for key, value in proof.items() if isinstance(value, int | float)}


def _eager(family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What an untouched pipeline draws, and the baseline."""
    pipe = make(family)
    untouched = draw(family, pipe)
    against_eager("baseline").apply(pipe)
    return untouched, draw(family, pipe)


def _outcome(family: str, name: str, untouched: torch.Tensor, expected: torch.Tensor) -> str:
    """What comes of the technique on this class: `exact`, `approximate`, or `refused: ` and the reason."""
    pipe = make(family)
    variant = _ready(name)
    try:
        patch = variant.apply(pipe)
    except (Unsupported, NothingMatched) as error:
        reason = str(error)
        patch = None
    if patch is None:
        assert "\n" not in reason, name
        assert torch.equal(draw(family, pipe), untouched), f"{name} refuses, and has changed something"
        return f"refused: {reason.rpartition('; ')[0]}"
    there = {
        place
        for part, module in pipe.components.items()
        if isinstance(module, torch.nn.Module)
        for place, _ in module.named_modules(prefix=part)
    }
    assert patch.touched, name
    assert set(patch.touched) <= there, f"{name} touched what is not there"
    idle = patch.proof
    output = draw(family, pipe)
    assert json.loads(json.dumps(patch.proof)) == patch.proof, name
    counted = [key for key, value in _counts(patch.proof).items() if value > _counts(idle).get(key, 0)]
    assert counted, f"{name} counted nothing"
    if variant.exact:
        assert _difference(output, expected) < 1e-4, name
    else:
        assert output.isfinite().all(), name
        rounding = _difference(expected, untouched)
        assert 10 * rounding < _difference(output, expected) < 1, name
    if any(part.why_lossy for part in patch.parts):
        with pytest.raises(OptsdError, match="cannot be undone: .*; load the pipeline again"):
            patch.undo()
    else:
        patch.undo()
        assert torch.equal(draw(family, pipe), untouched), f"{name} was not undone to the bit"
        assert not any(parts(module) for module in anatomy.denoiser(pipe).modules()), name
    return "exact" if variant.exact else "approximate"


@pytest.mark.parametrize("family", CLASSES)
def test_every_technique(family, row_of_document):
    untouched, expected = _eager(family)
    assert _difference(expected, untouched) < 1e-4
    outcomes = {name: _outcome(family, name, untouched, expected) for name in OURS}
    # What means nothing for a class is refused; nothing else is.
    meaningless = (FOR_TRANSFORMERS if family in UNETS else FOR_UNETS) + NOT_KNOWN.get(family, ())
    refused = [name for name in OURS if name.startswith(meaningless)]
    assert [name for name in OURS if outcomes[name].startswith("refused")] == refused
    row_of_document(DOCUMENT, "pipeline", OURS)
    row_of_document(DOCUMENT, family, [outcomes[name].partition(": ")[0] for name in OURS])
    for name in refused:
        row_of_document(DOCUMENT, f"{name}, {family}", [outcomes[name].partition(": ")[2]])


@pytest.mark.parametrize("family", CLASSES)
def test_bfloat16_between_the_layers(family, monkeypatch):
    """As on a CPU that has instructions for it: features are cast on their way in and out, numbers are not."""
    _, expected = _eager(family)
    pipe = make(family)
    against_eager("baseline").apply(pipe)
    monkeypatch.setattr(quantize, "suits_bfloat16", lambda module: True)
    Int8().apply(pipe)
    entered: dict[str, torch.dtype] = {}

    def note(module, args, kwargs) -> None:
        named = dict(zip(anatomy.arguments(type(module)), args, strict=False)) | kwargs
        named |= named.get("added_cond_kwargs") or {}
        entered.update((key, each.dtype) for key, each in named.items() if isinstance(each, torch.Tensor))

    anatomy.denoiser(pipe).register_forward_pre_hook(note, with_kwargs=True)
    output = draw(family, pipe)
    assert output.dtype == torch.float32
    assert 1e-5 < _difference(output, expected) < 0.1
    features = {key for key, dtype in entered.items() if dtype == torch.bfloat16}
    assert {"encoder_hidden_states"} < features
    assert not features & set(anatomy.NUMBERS)
    if family == "FLUX.1":
        assert {entered[key] for key in ("timestep", "guidance", "img_ids", "txt_ids")} == {torch.float32}


KEPT = {
    "SD 1.5": "conv_in conv_out time_embedding.linear_1 time_embedding.linear_2",
    "SDXL": "conv_in conv_out time_embedding.linear_1 time_embedding.linear_2 "
    "add_embedding.linear_1 add_embedding.linear_2",
    "SD3": "pos_embed.proj context_embedder norm_out.linear proj_out "
    "time_text_embed.timestep_embedder.linear_1 time_text_embed.timestep_embedder.linear_2 "
    "time_text_embed.text_embedder.linear_1 time_text_embed.text_embedder.linear_2 "
    "transformer_blocks.0.norm1.linear transformer_blocks.0.norm1_context.linear "
    "transformer_blocks.1.norm1.linear transformer_blocks.1.norm1_context.linear "
    "transformer_blocks.2.norm1.linear transformer_blocks.2.norm1_context.linear",
    "FLUX.1": "x_embedder context_embedder norm_out.linear proj_out "
    "time_text_embed.timestep_embedder.linear_1 time_text_embed.timestep_embedder.linear_2 "
    "time_text_embed.guidance_embedder.linear_1 time_text_embed.guidance_embedder.linear_2 "
    "time_text_embed.text_embedder.linear_1 time_text_embed.text_embedder.linear_2 "
    "transformer_blocks.0.norm1.linear transformer_blocks.0.norm1_context.linear "
    "single_transformer_blocks.0.norm.linear single_transformer_blocks.1.norm.linear",
    "PixArt-Σ": "pos_embed.proj adaln_single.linear caption_projection.linear_1 caption_projection.linear_2 proj_out "
    "adaln_single.emb.timestep_embedder.linear_1 adaln_single.emb.timestep_embedder.linear_2",
    "Sana": "patch_embed.proj time_embed.linear time_embed.emb.timestep_embedder.linear_1 "
    "time_embed.emb.timestep_embedder.linear_2 caption_projection.linear_1 caption_projection.linear_2 proj_out",
}


@pytest.mark.parametrize("family", KEPT)
def test_first_last_and_modulation_are_kept(family):
    pipe = make(family)
    prefix = f"{anatomy.denoiser_name(pipe)}."
    patch = Int8().apply(pipe)
    assert {name.removeprefix(prefix) for name in patch.proof["left_in_high_precision"]} == set(KEPT[family].split())
    assert any(".ff" in name or "proj_mlp" in name for name in patch.touched)
    assert any(name.endswith("to_q") for name in patch.touched)


TWO_CALLS = {"negative_prompt": ["blue", "dogs"], "true_cfg_scale": 2.0}


@pytest.mark.parametrize("name", ["sdpa", "flash", "flash-enhanced", "int8", "fbcache:0.2", "taylorseer", "pab"])
def test_guidance_in_two_calls(name):
    pipe = make("FLUX.1")
    against_eager("baseline").apply(pipe)
    expected = draw("FLUX.1", pipe, **TWO_CALLS)
    assert _difference(draw("FLUX.1", pipe), expected) > 0.01, "the negative prompt means nothing"
    pipe = make("FLUX.1")
    variant = _ready(name)
    variant.apply(pipe)
    assert _difference(draw("FLUX.1", pipe, **TWO_CALLS), expected) < (1e-4 if variant.exact else 0.1)

"""What people do to a pipeline whose denoiser is a transformer: the second table of docs/contact.md."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from acts import CALLS, FOR_ALL, Act, Done, cases, columns, error, label, outcomes, plainly, promises, technique
from copies import copier
from diffusers import FlowMatchHeunDiscreteScheduler, StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0
from small_pipelines import make as made_anew
from torch import Tensor

import optsd
from optsd import quantization

ATTENTION = ("eager", "sdpa", "flash", "flash-enhanced", "sage")
TECHNIQUES = (*ATTENTION, "int8", "int4", "fbcache:0.5", "taylorseer:3", "pab:2")
KINDS = ("flash", "flash-enhanced", "int8", "taylorseer:3", "pab:2")
SIZE, STEPS = 16, 5
LEFT_OUT = ("`torch.compile`", "`fuse_qkv_projections`")
"""The one takes seconds, the other cannot draw a picture where a block has a second attention layer, patched or not."""
LATENTS = torch.full((1, 4, SIZE // 2, SIZE // 2), 0.3)


@pytest.fixture(scope="module")
def make() -> Callable[[], Any]:
    whole = made_anew("SD3")
    return copier(whole, *(part for name, part in whole.components.items() if "tokenizer" in name))


@pytest.fixture(scope="module")
def promised(make: Callable[[], Any]) -> dict[str, float]:
    return promises(make, draw, TECHNIQUES)


def draw(done: Done, seed: int = 0) -> Tensor:
    """Latents, B×4×8×8."""
    options: dict[str, Any] = {
        "prompt": "a circle",
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "max_sequence_length": 16,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        "height": SIZE,
        "width": SIZE,
    }
    with done.around():
        return done.pipe(**options | done.options).images.float()


def heun(pipe: Any) -> None:
    pipe.scheduler = FlowMatchHeunDiscreteScheduler.from_config(pipe.scheduler.config)


def image_to_image(pipe: Any) -> Done:
    made = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    return Done(made, {"image": LATENTS, "strength": 0.9})


AFTER: dict[str, Act] = FOR_ALL | {
    "another scheduler": plainly(heun),
    "`from_pipe` to image-to-image": image_to_image,
    "`set_attn_processor`": plainly(lambda pipe: pipe.transformer.set_attn_processor(JointAttnProcessor2_0())),
}
CASES = [(act, before) for act, before in cases(AFTER, only_after=CALLS) if act not in LEFT_OUT]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="diffusers|peft|accelerate|transformers")
        yield


@columns(KINDS, TECHNIQUES)
@pytest.mark.parametrize(("act", "before"), CASES, ids=[label(*case) for case in CASES])
def test_acts(act, before, names, make, promised, row_of_document):
    asked = {name: promised[name] for name in names}
    cells = outcomes(make, draw, asked, AFTER[act], before, "bfloat16" in act)
    row_of_document("contact.md", f"SD3: {label(act, before)}", cells)


def test_saved_and_loaded(make, promised, tmp_path, row_of_document):
    """`save_pretrained` writes the pipeline without the technique, `quantization.save` that with quantized layers."""
    wanted, plain, quantized = draw(Done(make(), {})), [], []
    for name in TECHNIQUES:
        pipe = make()
        technique(name).apply(pipe)
        pipe.save_pretrained(tmp_path / name / "plain")
        loaded = StableDiffusion3Pipeline.from_pretrained(tmp_path / name / "plain")
        assert error(draw(Done(loaded, {})), wanted) < (promised[name] if name.startswith("int") else 1e-6)
        assert not optsd.patches(loaded)
        plain.append("works")
        quantization.save(pipe, tmp_path / name / "quantized")
        again = optsd.load(str(tmp_path / name / "quantized"))
        expected = draw(Done(pipe if name.startswith("int") else make(), {}))
        # Quantized activations step where rounding goes the other way: so the weights are compared to the bit.
        assert error(draw(Done(again, {})), expected) < promised[name]
        kept = (pipe if name.startswith("int") else make()).transformer.state_dict()
        assert all(torch.equal(kept.pop(key), tensor) for key, tensor in again.transformer.state_dict().items())
        assert not kept
        quantized.append("works")
    row_of_document("contact.md", "SD3: `save_pretrained`, after the technique", plain)
    row_of_document("contact.md", "SD3: `optsd.quantization.save`, after the technique", quantized)

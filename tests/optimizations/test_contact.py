"""What people do to a pipeline, before or after a technique: the picture is that of a pipeline without it to which the
same was done, or the act is refused in one line. docs/contact.md shows what came of each, technique by technique."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from acts import (
    CALLS,
    FOR_ALL,
    Act,
    Done,
    cases,
    columns,
    error,
    label,
    outcome,
    outcomes,
    plain_state,
    plainly,
    promises,
    technique,
)
from copies import copier
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from replays import EXECUTED
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

import optsd
from optsd import quantization
from optsd.models.tokenizer import byte_level_tokenizer

TECHNIQUES = (
    "eager",
    "sdpa",
    "flash",
    "flash-enhanced",
    "sage",
    "kvcache",
    "int8",
    "int4",
    "deepcache:3",
    "tome:0.5",
)
KINDS = ("flash", "flash-enhanced", "kvcache", "int8", "deepcache:3")
WIDTH, TEXT_WIDTH, LATENTS = 32, 32, 8
STEPS = 2


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], StableDiffusionPipeline]:
    """A pipeline of one block a side, in some milliseconds, with weights that make everything matter."""
    tokens = byte_level_tokenizer(tmp_path_factory.mktemp("tokens"), words=(), length=16)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=LATENTS,
            block_out_channels=(WIDTH,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
        )
        for name, parameter in unet.named_parameters():
            if any(word in name for word in ("attn2.to_v", "attn2.to_out.0.weight", "conv_out.weight")):
                parameter.data *= 2
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=LATENTS)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=TEXT_WIDTH,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=16,
                eos_token_id=tokens.eos_token_id,
            )
        )
    whole = StableDiffusionPipeline(
        unet=unet.eval(),
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokens,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    whole.set_progress_bar_config(disable=True)
    return copier(whole, tokens)


def draw(done: Done, seed: int = 0) -> Tensor:
    """Latents, or an image where the VAE is what it is about; B×4×8×8, float32."""
    options = {
        "prompt": "a circle",
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        "height": LATENTS,
        "width": LATENTS,
    }
    options |= done.options
    for name in [name for name, value in options.items() if value is None]:
        del options[name]
    with done.around():
        images = done.pipe(**options).images
    return torch.as_tensor(images).float()


def ip_adapter(pipe: Any) -> Done:
    noise = torch.Generator().manual_seed(3)
    layers = {}
    for number in range(1, 2 * len(pipe.unet.attn_processors), 2):
        for name in ("to_k_ip", "to_v_ip"):
            layers[f"{number}.{name}.weight"] = torch.randn(WIDTH, TEXT_WIDTH, generator=noise)
    projection = {
        "proj.weight": torch.randn(4 * TEXT_WIDTH, 8, generator=noise),
        "proj.bias": torch.zeros(4 * TEXT_WIDTH),
        "norm.weight": torch.ones(TEXT_WIDTH),
        "norm.bias": torch.zeros(TEXT_WIDTH),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_ip_adapter(
            {"image_proj": projection, "ip_adapter": layers}, subfolder="", weight_name="", image_encoder_folder=None
        )
    return Done(pipe, {"ip_adapter_image_embeds": [torch.randn(2, 1, 8, generator=noise)]})


def control_net(pipe: Any) -> Done:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        control = ControlNetModel(
            block_out_channels=(WIDTH,),
            down_block_types=("CrossAttnDownBlock2D",),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
            conditioning_embedding_out_channels=(8,),
        ).eval()
        for parameter in control.controlnet_down_blocks.parameters():
            torch.nn.init.normal_(parameter)
    made = StableDiffusionControlNetPipeline(**pipe.components, controlnet=control, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return Done(made, {"image": torch.ones(1, 3, LATENTS, LATENTS)})


def t2i_adapter(pipe: Any) -> Done:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        reader = T2IAdapter(in_channels=3, channels=[WIDTH], num_res_blocks=1, downscale_factor=1).eval()
    components = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    made = StableDiffusionAdapterPipeline(**components, adapter=reader, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return Done(made, {"image": torch.ones(1, 3, LATENTS, LATENTS)})


def image_to_image(pipe: Any) -> Done:
    made = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    options = {"image": torch.full((1, 3, LATENTS, LATENTS), 0.5), "strength": 0.9, "num_inference_steps": 3}
    return Done(made, options | {"height": None, "width": None})


def components_shared(pipe: Any) -> Done:
    """As a web interface keeps one set of networks for all of its pipelines."""
    made = StableDiffusionImg2ImgPipeline(**pipe.components, **UNCHECKED)
    made.set_progress_bar_config(disable=True)
    options = {"image": torch.full((1, 3, LATENTS, LATENTS), 0.5), "strength": 0.9, "num_inference_steps": 3}
    return Done(made, options | {"height": None, "width": None})


def euler(pipe: Any) -> None:
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)


def earlier_layer(pipe: Any) -> Done:
    """What `clip_skip=1` asks for, which this version of diffusers does not find in this version of transformers."""
    texts = pipe.tokenizer(["a circle", ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        positive, negative = pipe.text_encoder(texts, output_hidden_states=True).hidden_states[-2].split(1)
    return Done(pipe, {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative})


def saved(folder: Path, pipe: Any) -> Done:
    pipe.save_pretrained(folder)
    made = StableDiffusionPipeline.from_pretrained(folder, **UNCHECKED, safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return Done(made, {})


def stored(folder: Path, pipe: Any) -> Done:
    quantization.save(pipe, folder)
    return Done(optsd.load(str(folder)), {})


UNCHECKED = {"requires_safety_checker": False}
IMAGE = {"output_type": "np"}

AFTER: dict[str, Act] = FOR_ALL | {
    "another scheduler": plainly(euler),
    "embeddings of an earlier layer": earlier_layer,
    "IP-Adapter": ip_adapter,
    "ControlNet": control_net,
    "T2I-Adapter": t2i_adapter,
    "`from_pipe` to image-to-image": image_to_image,
    "another pipeline of its components": components_shared,
    "`set_default_attn_processor`": plainly(lambda pipe: pipe.unet.set_default_attn_processor()),
    "`set_attn_processor`": plainly(lambda pipe: pipe.unet.set_attn_processor(AttnProcessor())),
    "`enable_attention_slicing`": plainly(lambda pipe: pipe.enable_attention_slicing()),
    "FreeU": plainly(lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)),
    "VAE tiling and slicing": lambda pipe: (pipe.vae.enable_tiling(), pipe.vae.enable_slicing(), Done(pipe, IMAGE))[-1],
    "`channels_last`": plainly(lambda pipe: pipe.unet.to(memory_format=torch.channels_last)),
}
CASES = cases(AFTER, only_after=(*CALLS, "embeddings of an earlier layer"))


def _marked(all_cases: list[tuple[str, bool]]) -> Any:
    """Those that compile are asked for by name: seconds each."""
    return pytest.mark.parametrize(
        ("act", "before"),
        [
            pytest.param(act, before, id=label(act, before), marks=[pytest.mark.whole] * ("compile" in act))
            for act, before in all_cases
        ],
    )


@pytest.fixture(scope="module")
def promised(make: Callable[[], Any]) -> dict[str, float]:
    return promises(make, draw, TECHNIQUES)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="diffusers|peft|accelerate|transformers")
        yield


def test_save_pretrained(make, promised, tmp_path, row_of_document):
    """The folder is that of the pipeline without the technique; of a quantized one, with the weights that it had."""
    wanted, cells = draw(Done(make(), {})), []
    for name in TECHNIQUES:
        pipe = make()
        technique(name).apply(pipe)
        loaded = saved(tmp_path / name, pipe)
        assert error(draw(loaded), wanted) < (promised[name] if name.startswith("int") else 1e-6)
        assert not optsd.patches(loaded.pipe)
        assert set(loaded.pipe.unet.state_dict()) == set(plain_state(pipe))
        cells.append("works")
    row_of_document("contact.md", "`save_pretrained`, after the technique", cells)


def test_quantization_save(make, tmp_path, row_of_document):
    """The folder is that of the pipeline with its quantized layers; every other technique is applied anew."""
    cells = []
    for name in TECHNIQUES:
        pipe = make()
        technique(name).apply(pipe)
        wanted = draw(Done(pipe if name.startswith("int") else make(), {}))
        assert error(draw(stored(tmp_path / name, pipe)), wanted) < 1e-4
        cells.append("works")
    row_of_document("contact.md", "`optsd.quantization.save`, after the technique", cells)


@columns(KINDS, TECHNIQUES)
@_marked(CASES)
def test_acts(act, before, names, make, promised, row_of_document):
    asked = {name: promised[name] for name in names}
    row_of_document(
        "contact.md", label(act, before), outcomes(make, draw, asked, AFTER[act], before, "bfloat16" in act)
    )


@pytest.mark.whole
@pytest.mark.parametrize("name", EXECUTED)
@_marked(CASES)
def test_acts_on_a_pipeline_that_was_read_before(act, before, name, make, row_of_document):
    """Seconds each: `pytest tests/optimizations/test_contact.py -m whole`."""
    wanted = [draw(AFTER[act](make()), seed) for seed in (0, 1)]
    promise = 0.05 if "bfloat16" in act else 1e-4
    row_of_document(
        "contact.md",
        f"{name}: {label(act, before)}",
        [outcome(make, draw, name, AFTER[act], before, wanted, promise)],
    )

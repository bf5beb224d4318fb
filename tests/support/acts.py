"""What people do to a pipeline, whatever its class, and what comes of it beside a technique."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import accelerate
import peft
import pytest
import torch
from replays import executed_here
from torch import Tensor

import optsd
from optsd import anatomy
from optsd.calls import plain_class
from optsd.errors import OptsdError
from optsd.quantization import boundary
from optsd.variants import Variant, parse


@dataclass(frozen=True)
class Done:
    """A pipeline to which something was done, and how it is called since."""

    pipe: Any
    options: dict[str, Any]
    around: Callable[[], Any] = warnings.catch_warnings


Act = Callable[[Any], Done]
Draw = Callable[..., Tensor]
"""(done, seed=0): what a pipeline draws, in float32."""


def plainly(act: Callable[[Any], Any]) -> Act:
    """An act that changes the pipeline and not how it is called."""

    def do(pipe: Any) -> Done:
        act(pipe)
        return Done(pipe, {})

    return do


def called_with(**options: Any) -> Act:
    return lambda pipe: Done(pipe, options)


def within(context: Callable[[], Any]) -> Act:
    return lambda pipe: Done(pipe, {}, context)


def adapter(pipe: Any) -> None:
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "conv1"], init_lora_weights=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        anatomy.denoiser(pipe).add_adapter(config, "style")


def fused(pipe: Any) -> None:
    adapter(pipe)
    pipe.fuse_lora(components=[anatomy.denoiser_name(pipe)])


def scaled(pipe: Any) -> None:
    adapter(pipe)
    anatomy.denoiser(pipe).set_adapters(["style"], weights=[0.5])


def unloaded(pipe: Any) -> None:
    adapter(pipe)
    pipe.unload_lora_weights()


def hooked(pipe: Any) -> None:
    """A user's own hooks: on the denoiser, and on every layer that a technique may have touched."""
    for module in anatomy.denoiser(pipe).modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(lambda module, arguments, output: output * 1.01)
            module.register_forward_pre_hook(lambda module, arguments: (arguments[0] * 1.02, *arguments[1:]))
    anatomy.denoiser(pipe).register_forward_hook(lambda module, arguments, output: (output[0] * 0.9,))


def compiled(pipe: Any) -> None:
    setattr(pipe, anatomy.denoiser_name(pipe), torch.compile(anatomy.denoiser(pipe), backend="eager"))


def other_text(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"prompt_embeds": -tensors["prompt_embeds"]} if step == 0 else {}


def text_in_place(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors["prompt_embeds"].mul_(-1)
    return {}


def copied(pipe: Any) -> Done:
    return Done(copy.deepcopy(pipe), {})


def pickled(pipe: Any) -> Done:
    made = copy.copy(pipe)
    setattr(made, anatomy.denoiser_name(pipe), pickle.loads(pickle.dumps(anatomy.denoiser(pipe))))  # noqa: S301 - its own
    return Done(made, {})


def plain_state(pipe: Any) -> dict[str, Tensor]:
    """What the denoiser's weights are called, and how large they are, without any technique."""
    denoiser = anatomy.denoiser(pipe)
    return plain_class(denoiser).from_config(denoiser.config).state_dict()


def other_weights(pipe: Any) -> None:
    noise = torch.Generator().manual_seed(6)
    state = {name: torch.randn(tensor.shape, generator=noise) / 4 for name, tensor in plain_state(pipe).items()}
    anatomy.denoiser(pipe).load_state_dict(state)


FOR_ALL: dict[str, Act] = {
    "nothing": plainly(lambda pipe: None),
    "no guidance": called_with(guidance_scale=1.0),
    "two pictures of a prompt": called_with(num_images_per_prompt=2),
    "a callback gives other embeddings": called_with(
        callback_on_step_end=other_text, callback_on_step_end_tensor_inputs=["prompt_embeds"]
    ),
    "a callback changes embeddings in place": called_with(
        callback_on_step_end=text_in_place, callback_on_step_end_tensor_inputs=["prompt_embeds"]
    ),
    "`torch.inference_mode()`": within(torch.inference_mode),
    "LoRA added": plainly(adapter),
    "LoRA scaled": plainly(scaled),
    "LoRA fused": plainly(fused),
    "LoRA unloaded": plainly(unloaded),
    "`enable_model_cpu_offload`": plainly(lambda pipe: pipe.enable_model_cpu_offload(device="cpu")),
    "`enable_sequential_cpu_offload`": plainly(
        # of the denoiser alone: on a CPU the pipeline's own method stumbles over the text encoder, patched or not
        lambda pipe: accelerate.cpu_offload(anatomy.denoiser(pipe), torch.device("cpu"))
    ),
    "`enable_group_offload`": plainly(
        lambda pipe: pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    ),
    "`fuse_qkv_projections`": plainly(lambda pipe: anatomy.denoiser(pipe).fuse_qkv_projections()),
    "`to(torch.float32)`": plainly(lambda pipe: pipe.to(torch.float32)),
    "`to(torch.bfloat16)`": plainly(lambda pipe: pipe.to(torch.bfloat16)),
    "`load_state_dict`": plainly(other_weights),
    "`torch.autocast` to bfloat16": within(lambda: torch.autocast("cpu", torch.bfloat16)),
    "`enable_layerwise_casting` to bfloat16": plainly(
        lambda pipe: anatomy.denoiser(pipe).enable_layerwise_casting(torch.bfloat16, compute_dtype=torch.float32)
    ),
    "a user's own hooks": plainly(hooked),
    "`torch.compile`": plainly(compiled),
    "`copy.deepcopy`": copied,
    "`pickle`": pickled,
}
"""Acts that every pipeline knows. Those that only change how it is called are done after a technique alone."""
CALLS = (
    "nothing",
    "no guidance",
    "two pictures of a prompt",
    "a callback gives other embeddings",
    "a callback changes embeddings in place",
    "`torch.inference_mode()`",
    "`torch.autocast` to bfloat16",
)


def cases(acts: Iterable[str], only_after: Iterable[str]) -> list[tuple[str, bool]]:
    """Each act and whether it comes before the technique."""
    return [(act, False) for act in acts] + [(act, True) for act in acts if act not in only_after]


def columns(kinds: tuple[str, ...], techniques: tuple[str, ...]) -> Any:
    """Gives a test `names`: one technique of each kind, and the others where all are asked for (`-m whole`)."""
    others = tuple(name for name in techniques if name not in kinds)
    marked = pytest.param(others, id="the others", marks=pytest.mark.whole)
    return pytest.mark.parametrize("names", [pytest.param(kinds, id="one of each kind"), marked])


def label(act: str, before: bool) -> str:
    return f"{act}, {'then the technique' if before else 'after the technique'}"


def technique(name: str) -> Variant:
    """Compiled without inductor, which takes minutes, and replayed without a GPU."""
    variant = parse(name)
    return Variant(variant.name, tuple(map(executed_here, variant.steps)))


def error(output: Tensor, wanted: Tensor) -> float:
    """Relative error of the whole."""
    return ((output - wanted).norm() / wanted.norm()).item()


def as_if_on_a_newer_cpu(name: str) -> Any:
    """Where the CPU has instructions for it, bfloat16 passes between quantized layers: here for one of the two."""
    return mock.patch.object(boundary, "has_bfloat16", return_value=name == "int8")


def promises(make: Callable[[], Any], draw: Draw, techniques: Iterable[str]) -> dict[str, float]:
    """What each technique may change: rounding, or four times its error on a pipeline to which nothing was done."""
    wanted = [draw(Done(make(), {}), seed) for seed in (0, 1)]
    found = {}
    for name in techniques:
        done = Done(make(), {})
        variant = technique(name)
        with as_if_on_a_newer_cpu(name):
            variant.apply(done.pipe)
            errors = [error(draw(done, seed), picture) for seed, picture in enumerate(wanted)]
        found[name] = 1e-4 if variant.exact else 4 * max(errors)
        assert variant.exact or found[name] > 0, f"{name} changes nothing"
    return found


def refused(refusal: OptsdError) -> str:
    assert refusal.remedy
    assert "\n" not in str(refusal)
    return "refused"


def counts(patch: Any) -> dict[str, int]:
    return {key: value for key, value in patch.proof.items() if type(value) is int}


def outcome(
    make: Callable[[], Any], draw: Draw, name: str, act: Act, before: bool, wanted: list[Tensor], promise: float
) -> str:
    """`works` or `refused`; anything else that happens fails the test."""
    pipe = make()
    try:
        if before:
            done = act(pipe)
            technique(name).apply(done.pipe)
        else:
            technique(name).apply(pipe)
            done = act(pipe)
        drawn = [draw(done)]
        (patch,) = optsd.patches(done.pipe)
        earlier = counts(patch)
        drawn.append(draw(done, seed=1))
    except OptsdError as refusal:
        return refused(refusal)
    for each, picture in zip(drawn, wanted, strict=True):
        assert each.isfinite().all(), name
        assert error(each, picture) < promise, f"{error(each, picture):.2g} from the picture without {name}"
    assert patch.active, f"{name}: {patch.displaced} displaced"
    # What a compiled graph does is not counted.
    is_compiled = name == "compile" or hasattr(vars(done.pipe)[anatomy.denoiser_name(done.pipe)], "_orig_mod")
    assert is_compiled or any(counts(patch)[key] > value for key, value in earlier.items()), f"{name}: nothing counted"
    return "works"


def outcomes(
    make: Callable[[], Any],
    draw: Draw,
    promised: dict[str, float],
    act: Act,
    before: bool,
    loose: bool,
) -> dict[str, str]:
    """A row: what comes of the act beside each technique. `loose` where the act itself rounds to bfloat16."""
    wanted, untouched, row = [draw(act(make()), seed) for seed in (0, 1)], draw(Done(make(), {})), {}
    for name, own in promised.items():
        promise = max(own, 0.05 if loose else 0.0)
        if own > 1e-4 and wanted[0].shape == untouched.shape:
            # of the approximate ones it may also be a quarter of what the act itself changes
            promise = max(promise, error(wanted[0], untouched) / 4)
        with as_if_on_a_newer_cpu(name):
            row[name] = outcome(make, draw, name, act, before, wanted, promise)
    return row

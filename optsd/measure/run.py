"""One batch of pictures: what every measurement runs."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from optsd.measure.seeds import generators
from optsd.models.shapes import PIPELINES
from optsd.records import Workload

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PHOTO_PROMPTS = (
    "a photo of a dog that runs on a beach, high quality",
    "a bowl of fruit on a wooden table, natural light",
    "an old red bus in a narrow street, 50mm",
    "two people with umbrellas in front of a station, sharp focus",
)
"""Prompts of the time and memory passes for models of photographs; their length is what matters there."""


def timing_prompts(model: str, count: int) -> list[str]:
    """Prompts for the passes that measure time and memory: the model's own kind, always the same, no two alike."""
    if model in PIPELINES:
        from itertools import islice

        from optsd.models.shapes.scenes import scenes

        return [scene.caption for scene in islice(scenes(seed=31, held_out=True), count)]
    photos = len(PHOTO_PROMPTS)
    return [PHOTO_PROMPTS[i % photos] + (f", take {i // photos + 1}" if i >= photos else "") for i in range(count)]


def batch_of(prompts: Sequence[str], size: int, number: int) -> tuple[list[str], int]:
    """The prompts of a run's batch with this number, from 0, and the index of its first picture, hence its noise.

    Where the prompts are at an end they come round again, with new noise.
    """
    first = number * size
    return [prompts[(first + place) % len(prompts)] for place in range(size)], first


def run_batch(
    pipe: "DiffusionPipeline",
    workload: Workload,
    prompts: list[str],
    first: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
    output_type: str = "pil",
) -> Any:
    """One call of the pipeline: the pictures of `prompts`, the first of which has index `first` in its run.

    `on_step` hears the number of each denoising step when it is done. A list of PIL's images, or with `output_type`
    "np" an array N×H×W×3 of numbers from 0 to 1, in which NaN is still to be seen.
    """

    def done(pipe: object, step: int, timestep: object, tensors: dict) -> dict:
        on_step(step + 1)
        return tensors

    return pipe(
        prompts,
        num_inference_steps=workload.steps,
        guidance_scale=workload.guidance,
        height=workload.height,
        width=workload.width,
        generator=generators(workload.seed, first, len(prompts)),
        callback_on_step_end=done,
        output_type=output_type,
    ).images

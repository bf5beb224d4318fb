"""What is benched here beside OptSD's variants: put your own pipeline in the place of this one. @STAMP@"""

import torch

import optsd


class Mine:
    """Made once, in a process of its own; then called for every batch, with as many seeds as prompts."""

    def __init__(self, workload):
        self.pipe = optsd.load("shapes", workload.device, workload.dtype)

    def __call__(self, prompts, seeds, workload):
        """A picture for each prompt: PIL's images of the workload's size, or an array N×H×W×3."""
        return self.pipe(
            prompts,
            num_inference_steps=workload.steps,
            guidance_scale=workload.guidance,
            height=workload.height,
            width=workload.width,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        ).images

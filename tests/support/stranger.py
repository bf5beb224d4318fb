"""A project of somebody else's, with a technique and a pipeline of its own, which tests of the wheel install."""

import os
import time
from dataclasses import dataclass

import torch

import optsd
from optsd.calls import Call
from optsd.patching import Interposed, Patch, Stage


class Counted:
    calls = 0

    def __call__(self, call: Call, *args, **kwargs):
        self.calls += 1
        return call(*args, **kwargs)


@dataclass(frozen=True)
class Mine:
    name: str = "mine"
    exact: bool = True
    stage: Stage = Stage.REUSE
    slot: str = "mine"

    def check(self, pipe) -> None: ...

    def apply(self, pipe) -> Patch:
        part = Counted()
        return Patch("mine", ("unet",), lambda: {"calls": part.calls}, (Interposed(pipe.unet, "", part),))


class Pipeline:
    def __init__(self, workload) -> None:
        self.pipe = optsd.load("shapes", "cpu")
        self.weight_bytes = 4 * sum(each.numel() for each in self.pipe.unet.parameters())

    def __call__(self, prompts, seeds, workload):
        began = time.perf_counter()
        size = {"height": workload.height, "width": workload.width, "guidance_scale": workload.guidance}
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        pictures = self.pipe(
            prompts, **size, num_inference_steps=workload.steps, generator=noise, output_type="np"
        ).images
        if os.environ.get("GREY") and seeds[0] % 10 == 0:
            pictures[0] = 0.5
        if os.environ.get("SLOW"):
            time.sleep(0.3 * (time.perf_counter() - began))
        return pictures

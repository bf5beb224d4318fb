"""`optsd doctor`: what this machine can run, and what is missing for the rest."""

import argparse
import importlib.util
from collections.abc import Iterator

_OPTIONAL = {
    "bitsandbytes": ("variants int8-bnb and int4-bnb", "pip install 'optsd[peers]'"),
    "torchao": ("variants int8-torchao and int4-torchao", "pip install 'optsd[peers]'"),
    "openvino": ("OpenVINO in bench/test_unet.py and test_peers.py", "pip install 'optsd[peers]'"),
    "nncf": ("OpenVINO's int8 in bench/test_unet.py and test_peers.py", "pip install 'optsd[peers]'"),
    "flash_attn": ("flash through the flash-attn package", "on a machine with CUDA: pip install 'optsd[flash-attn]'"),
    "torch_fidelity": ("FID, KID and IS", "pip install 'optsd[bench]'"),
    "lpips": ("LPIPS", "pip install 'optsd[bench]'"),
    "open_clip": ("CLIP scores", "pip install 'optsd[bench]'"),
}
_FILES = {
    "inception": "weights for FID, KID, IS, precision and recall",
    "alexnet": "weights for LPIPS",
    "clip": "weights for CLIP scores",
    "dinov2": "weights for FD-DINOv2",
    "clip-large": "weights for CMMD",
}

Row = tuple[str, str, str]
"""Part, state, and what to do where that is not all that it could be."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="optsd doctor", description=__doc__)
    parser.parse_args(arguments)

    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)  # what is to be copied is neither cut nor broken
    rows = [*_machine(), *_models(), *_metric_files(), *_packages()]
    width = max(len(part) for part, _, _ in rows)
    for part, state, remedy in rows:
        console.print(Text(part.ljust(width + 2), "bold") + Text(state, "yellow" if remedy else ""))
        if remedy:
            console.print(Text(" " * (width + 2) + remedy, "dim"))
    return 0


def _machine() -> Iterator[Row]:
    import torch  # it knows how many threads it takes

    from optsd import native
    from optsd.measure.environment import machine
    from optsd.report.tables import figure

    found = machine()
    cpu, load = found["cpu"], found["cpu"].get("load_average")
    yield "system", f"{found['system']}, Python {found['versions']['python']}", ""
    yield "CPU", f"{cpu['name']} ({', '.join(cpu['flags']) or 'no vector instructions that matter here'})", ""
    yield "cores", f"{cpu['usable_cores']} usable of {cpu['logical_cores']}; torch takes {torch.get_num_threads()}", ""
    if load and load > cpu["usable_cores"] / 2:
        yield "load", f"{load:.1f} on average", "others are at work here: timings will be noisy"
    yield "memory", figure(found["memory_bytes"], "B"), ""
    gpus = [f"{gpu['name']}" for gpu in found["gpus"]]
    yield "GPU", ", ".join(gpus) or "none", "" if gpus else "what it could do at best: optsd estimate --device a100"
    if refusal := native.refusal():
        yield "native CPU kernels", refusal, "torch's own kernels serve instead"
    else:
        yield "native CPU kernels", f"ready, for {native.instruction_set().name}", ""


def _models() -> Iterator[Row]:
    from optsd import models
    from optsd.errors import OptsdError
    from optsd.files import home

    for model in (*models.shapes.PIPELINES, "sd15"):
        try:
            source = models.check(model)
        except OptsdError as error:
            yield f"model {model}", error.problem, error.remedy
            continue
        offline = f"offline: put the diffusers folder at {home() / 'models' / 'sd15'}"
        state = f"at {source.path}" if source.path else f"from the hub, {source.hub_id}"
        yield f"model {model}", state, "" if source.path else offline


def _metric_files() -> Iterator[Row]:
    from optsd.data import downloads
    from optsd.errors import OptsdError

    captions = downloads.coco_folder() / downloads.CAPTIONS
    there = captions.is_file()
    yield "COCO's captions", f"at {captions}" if there else "missing", "" if there else "optsd coco fetch captions"
    for name, use in _FILES.items():
        try:
            yield use, f"at {downloads.find_weights(name)}", ""
        except OptsdError:
            yield use, "missing", f"optsd coco fetch {name}"


def _packages() -> Iterator[Row]:
    for package, (use, remedy) in _OPTIONAL.items():
        found = importlib.util.find_spec(package) is not None
        yield package, "installed" if found else f"missing: {use}", "" if found else remedy

"""`optsd doctor`: what this machine can run, and what is missing for the rest."""

import argparse
import importlib.util

_OPTIONAL = {
    "bitsandbytes": ("variants int8-bnb and int4-bnb", "pip install 'optsd[peers]'"),
    "torchao": ("variants int8-torchao and int4-torchao", "pip install 'optsd[peers]'"),
    "openvino": ("OpenVINO in bench/test_unet.py", "pip install 'optsd[peers]'"),
    "nncf": ("OpenVINO's int8 in bench/test_unet.py", "pip install 'optsd[peers]'"),
    "flash_attn": ("flash through the flash-attn package", "pip install 'optsd[flash-attn]' on a machine with CUDA"),
    "torch_fidelity": ("FID, KID and IS", "pip install 'optsd[bench]'"),
    "lpips": ("LPIPS", "pip install 'optsd[bench]'"),
    "open_clip": ("CLIP scores", "pip install 'optsd[bench]'"),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="optsd doctor", description=__doc__)
    parser.parse_args(arguments)

    from rich.console import Console
    from rich.table import Table

    from optsd import models, native
    from optsd.errors import OptsdError
    from optsd.files import home
    from optsd.measure.environment import machine

    console = Console()
    table = Table("part", "state", "remedy", title="this machine", title_justify="left")
    for key, value in machine().items():
        if isinstance(value, str | int | float) and value != "":
            table.add_row(key, str(value), "")
    for model in ("shapes", "sd15"):
        try:
            source = models.check(model)
            state = f"at {source.path}" if source.path else f"from the hub, {source.hub_id}"
            remedy = "" if source.path else f"offline: put the diffusers folder at {home() / 'models' / 'sd15'}"
        except OptsdError as error:
            state, remedy = error.problem, error.remedy
        table.add_row(f"model {model}", state, remedy)
    table.add_row("native CPU kernels", native.refusal() or "ready", "")
    for package, (use, remedy) in _OPTIONAL.items():
        found = importlib.util.find_spec(package) is not None
        table.add_row(package, "installed" if found else f"missing: {use}", "" if found else remedy)
    console.print(table)
    return 0

"""`optsd diverge A B`: where two variants first part by more than rounding."""

import argparse
import math

from optsd import models, workloads
from optsd.records import Workload
from optsd.variants import canonical

_EXAMPLES = """examples:
  optsd diverge baseline flash               do they compute the same? in which step and layer do they part?
  optsd diverge flash int8+flash             an approximate one parts at its first layer
  optsd diverge --model sd15 --steps 4 sdpa flash+kvcache

Rounding is measured: A runs a second time with every layer rounded otherwise. More than 10 times as far is more. At
last the denoiser of B is compared with float64's, beside the baseline's: an exact one errs at most 1.5 times as much.

exit status: 0 they are the same but for rounding; 1 they part; 2 wrong usage"""


ONE_SIDED = 0.1
"""A bias that is worth a word, of the root mean square."""


def main(arguments: list[str]) -> int:
    """Print the course of the error and the first place that parts; the exit status."""
    parser = argparse.ArgumentParser(
        prog="optsd diverge",
        description="Where two variants first part by more than rounding.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="a variant; join techniques with +")
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument("--model", default="shapes", help="as for the benches (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, help="default: the model's preset")
    parser.add_argument("--size", help="pixels: 512, or 768x512 for width x height")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args(arguments)

    names = canonical(given.a), canonical(given.b)
    source = models.check(given.model)
    preset = workloads.PRESETS[models.default_preset(source.name)]
    width, height = workloads.parse_size(given.size) if given.size else source.size
    guidance = preset.guidance if given.guidance is None else given.guidance
    workloads.at_least("--steps", given.steps, 1)
    workloads.at_least("--guidance", guidance, 0)
    workloads.check_seed(given.seed)

    from optsd.measure.divergence import diverge
    from optsd.measure.exactness import MOST, exactness
    from optsd.measure.run import run_batch, timing_prompts
    from optsd.measure.seeds import fix_seeds

    fix_seeds()
    pipes = [models.build(given.model, name, given.device, given.dtype)[0] for name in names]
    dtype = str(pipes[0].dtype).removeprefix("torch.")
    work = Workload(source.name, pipes[0].device.type, dtype, given.steps, guidance, height, width, 1, given.seed)
    prompts = timing_prompts(source.name, 1)
    runs = [lambda pipe=pipe: run_batch(pipe, work, prompts, output_type="np") for pipe in pipes]
    found = diverge(*pipes, *runs)
    print(f"{names[1]} beside {names[0]}, {source.name}, {dtype}, {given.steps} steps\n")
    print(f"{'network':<20} {'call':>4}  {'error':>8}  {'rounding':>8}")
    for point in found.course:
        bar = "█" * max(0, round(2 * (math.log10(max(point.error, 1e-10)) + 10))) if math.isfinite(point.error) else "∞"
        print(f"{point.place:<20} {point.call:>4}  {point.error:>8.1e}  {point.rounding:>8.1e}  {bar}")
    plain = pipes[0] if names[0] == "baseline" else models.build(given.model, "baseline", given.device, given.dtype)[0]
    truth = exactness(plain, pipes[1], lambda: run_batch(plain, work, prompts, output_type="np"))
    one_sided = f", {truth.bias:.0%} of it to one side" if truth.bias >= ONE_SIDED else ""
    times = f"{truth.ratio:.2f}" if truth.ratio < 100 else f"{truth.ratio:,.0f}"
    lost = "" if truth.nan_alike else "; a NaN does not go where it goes without it"
    print(
        f"\nagainst float64, one call of the denoiser: the baseline is off by {truth.plain:.1e}, "
        f"{names[1]} by {truth.ours:.1e}, {times} times as much{one_sided}{lost}"
    )
    first = found.first
    if first is None:
        print("the same but for rounding" if truth.holds else f"more than rounding: at most {MOST} times is")
        return 0 if truth.holds else 1
    print(
        f"\nthey part in call {first.call} of {first.network}, first in {first.place}: "
        f"error {first.error:.1e}, rounding {first.rounding:.1e}"
    )
    return 1

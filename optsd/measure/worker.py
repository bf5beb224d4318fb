"""One build in a process of its own: makes a variant and times one batch whenever it is asked.

This file is not imported by the build that it measures: `optsd.measure.builds` hands its text to a Python whose path
begins with that build. So any build can be measured that has `models.build`, `run_batch` and `Workload`, and both
builds run the same few lines. A request is a line of JSON on standard input, an answer one on standard output.
"""

import json
import os
import sys
import time


def hello():
    import optsd

    return {"file": os.path.abspath(optsd.__file__)}  # noqa: PTH100 - of whatever build this is


def build(model, variant, device, dtype, workload):
    """Load the model, apply the variant, draw one batch unmeasured."""
    from optsd import models
    from optsd.measure.run import run_batch, timing_prompts
    from optsd.measure.seeds import fix_seeds
    from optsd.records import Workload

    HELD.clear()
    fix_seeds()
    work = Workload(**workload)
    pipe, patch = models.build(model, variant, device, dtype)
    if not patch.touched:
        raise RuntimeError(variant + " touched nothing")
    prompts = timing_prompts(work.model, work.batch_size)
    HELD["run"] = lambda: run_batch(pipe, work, prompts)
    HELD["device"] = pipe.device
    HELD["run"]()
    return {"touched": len(patch.touched)}


def run():
    """Seconds of one batch, the device's work included."""
    synchronize()
    start = time.perf_counter()
    HELD["run"]()
    synchronize()
    return {"seconds": time.perf_counter() - start}


def synchronize():
    if HELD["device"].type == "cuda":
        import torch

        torch.cuda.synchronize(HELD["device"])


HELD: dict = {}
REQUESTS: dict = {"hello": hello, "build": build, "run": run}


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = REQUESTS[request.pop("do")](**request)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            answer = {"error": str(error) or type(error).__name__, "kind": type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

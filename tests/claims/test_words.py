"""What words mean: of rows that were seen, and of others of their kinds."""

import pytest

from optsd.claims import names, notes, words
from optsd.claims.schema import Stated


@pytest.mark.parametrize(
    ("said", "unit", "kind", "more"),
    [
        ("latency per call (batch)", "s", "time", {"per": "call"}),
        ("time per image", "ms", "time", {"per": "image"}),
        ("seconds a picture, median of 5", "s", "time", {"per": "", "statistic": "median of 5"}),
        ("s/image, UNet only", "s", "time", {"per": "image", "scope": "unet"}),
        ("VAE latency", "ms", "time", {"scope": "vae"}),
        ("iterations per second", "its/s", "rate", {"per": "step"}),
        ("throughput", "imgs/s", "rate", {"per": "image"}),
        ('"Speed over flash"', "% of time saved", "speedup", {"over": "flash"}),
        ("acceleration", "x (up to)", "speedup", {}),
        ("throughput gain", "% faster", "speedup", {}),
        ("speedup (FLOPs ratio)", "x", "operations_ratio", {}),
        ("peak memory", "GiB (max_memory_reserved)", "memory", {"when": "peak", "counted": "reserved"}),
        ("memory after loading", "GB", "memory", {"when": "after loading"}),
        ("VRAM reduction", "x less", "memory_saved", {}),
        ("FID (5k, COCO2014 val, resized to 299x299)", "", "fid",
         {"count": 5000, "reference": "COCO2014 val", "resized": 299}),
        ("FID on MJHQ", "", "fid", {"reference": "MJHQ"}),
        ("CLIP score", "cosine x100, ViT-L/14", "clip", {"network": "ViT-L/14"}),
        ("CLIP score decline", "points of 100", "clip", {"change": True}),
        ("LPIPS against fp16", "", "lpips", {"reference": "fp16"}),
        ("compile time", "s", "warm_up", {}),
        ("MACs per step", "GMAC", "operations", {"per": "step"}),
        ("size on disk", "MB", "size", {}),
        ("MACs reduction", "x", "operations_ratio", {}),
        ("FID-30K", "", "fid", {"count": 30000}),
        ("CLIP-Score (ViT-B/32)", "", "clip", {"network": "ViT-B/32", "reference": ""}),
        ("CMMD (CLIP ViT-L/14@336)", "", "cmmd", {}),
        ("FD-DINOv2", "", "fd_dinov2", {}),
        ("FD (DINOv2)", "", "fd_dinov2", {}),
        ("outcome", "", "outcome", {}),
        ("aesthetic score", "", "other", {}),
    ],
)  # fmt: skip
def test_metrics(said, unit, kind, more):
    found = words.metric(said, unit)
    assert found.kind == kind
    assert {name: getattr(found, name) for name in more} == more


@pytest.mark.parametrize(
    ("raw", "unit", "expected"),
    [
        (1.39, "x", {"figure": 1.39, "unit": "x"}),
        (4.2, "x (up to)", {"figure": 4.2, "bound": "up to"}),
        ("OOM after 2nd iteration", "", {"outcome": "out of memory"}),
        ("5 to 300", "x (as printed)", {"low": 5, "high": 300}),
        ("30-40", "%", {"low": 30, "high": 40, "unit": "%"}),
        ("4.8 -> 1.4", "GB", {"before": 4.8, "figure": 1.4}),
        ("24.48 ± 0.23", "", {"figure": 24.48, "spread": 0.23}),
        ("~3", "s", {"figure": 3, "bound": "about"}),
        ("1.9x", "", {"figure": 1.9, "unit": "x"}),
        ("-0.5", "% of time saved", {"figure": -0.5}),
        (0.25, "(fails above x1.15)", {"figure": 0.25, "fails_above": 1.15, "unit": ""}),
        ("a lot", "x", {"figure": None, "said": "a lot"}),
        ("out-of-memory", "", {"outcome": "out of memory"}),
        ("does not run", "", {"outcome": "does not run"}),
    ],
)
def test_values(raw, unit, expected):
    found = words.value(raw, unit)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("no compile = SDPA and channels-last, not eager attention", {"attention": "sdpa", "compiled": False}),
        ("diffusers 0.15 (no SDPA: naive attention)", {"attention": "eager"}),
        ("fp16 eager", {"dtype": "float16", "compiled": False}),
        ("torch.compile, bf16", {"dtype": "bfloat16", "compiled": True}),
        ("TensorRT FP16 engine", {"engine": "tensorrt", "dtype": "float16"}),
        ("28 DDIM steps", {"steps": 28}),
        (
            "bf16 uncompiled, 6.431 s (text says compiled)",
            {"seconds": 6.431, "text_says": "compiled", "compiled": False},
        ),
        ("each row adds to the one above", {"row": "before"}),
        ("previous row", {"row": "before"}),
        ("not said", {"known": False}),
        ("xFormers on torch 1.13", {"attention": "xformers"}),
    ],
)
def test_baselines(said, expected):
    found = notes.against(said)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("technique", "expected"),
    [
        ("Diffusers (torch 2.1, SDPA, compiled)", {"sdpa", "compile"}),
        ("SDPA + torch.compile", {"sdpa", "compile"}),
        ("Vanilla PyTorch (2.1.0)", set()),
        ("SD-XL", set()),
        ("base attention", {"eager"}),
        ("ToMe + xFormers", {"tome", "xformers"}),
        ("DeepCache w/ TGATE", {"deepcache", "t-gate"}),
        ("memory-efficient attention", {"xformers"}),
        ("Something New", {"something new"}),
    ],
)
def test_techniques(technique, expected):
    assert names.methods(technique) == expected


def test_devices():
    assert names.device("NVIDIA A100-SXM4-80GB") == names.device("A100 80 GB SXM") == ("a100", "80gb")
    assert names.device("3060 RTX") == names.device("NVIDIA GeForce RTX 3060")
    assert names.device("RTX 3090")[0] != names.device("3090 Ti")[0]
    assert names.device("L20 x 2")[0] != names.device("L20 x 1")[0] == "l20"
    assert names.device(Stated("Mac Studio", "M1 Ultra")) != names.device(Stated("Mac Studio", "M2 Ultra"))


def test_a_cpu_is_the_same_by_any_of_its_names():
    found = "Intel(R) Core(TM) i9-10980XE CPU @ 3.00GHz"
    assert names.same_machine("Core i9-10980XE", found, "cpu")
    assert not names.same_machine("Core i7-8700", found, "cpu")
    assert names.same_machine("AMD EPYC 7763 CPU", "AMD EPYC 7763 64-Core Processor", "cpu")
    assert not names.same_machine("RTX 3090", "NVIDIA GeForce RTX 3090 Ti", "cuda")
    assert names.same_machine("RTX 3090", "NVIDIA GeForce RTX 3090", "cuda")


def test_variants(claims_of):
    (deep, other, named, merged, none, flash) = claims_of(
        {"technique": "DeepCache", "parameters": {"N": 5, "branch": 0}},
        {"technique": "DeepCache", "parameters": {"N": 5, "branch": 1}},
        {"technique": "DeepCache (N=3)"},
        {"technique": "ToMe", "parameters": {"ratio": 0.3}},
        {"technique": "none", "baseline": "SDPA, eager"},
        {"technique": "T-GATE"},
    )
    assert [claim.variant for claim in (deep, other, named, merged, none, flash)] == [
        "deepcache:5",
        "",
        "deepcache:3",
        "tome:0.3",
        "sdpa",
        "",
    ]


def test_notes_that_say_it_again():
    (percent,) = notes.printed("printed +118.1%.")
    assert (percent.numbers, percent.unit) == ((118.1,), "%")
    (page,) = notes.printed(
        'docs/a.md of the same tag prints the same claim as "5 - 300% faster". The tables allow 2x.'
    )
    assert (page.numbers, page.unit, page.place) == ((5, 300), "% faster", "docs/a.md")
    assert notes.printed("recomputed 23.55 %") == ()
    assert notes.prompts("Prompts: COCO2017 val (paper says 5k). More.") == "COCO2017 val"
    assert notes.spread("seeds (24.6, 24.2, 24.7); sd 0.227")["readings"] == (24.6, 24.2, 24.7)

"""docs/field.md says what was found, and is the page of what is committed. Imports no torch."""

from dataclasses import replace
from pathlib import Path

import pytest

from optsd.claims import checks, files, rows
from optsd.claims.schema import Published
from optsd.estimate import field_page, published, survey
from optsd.estimate.published import Attainable
from optsd.records import Measurement, Results, Workload

ROOT = Path(__file__).parents[2]
ROW = {
    "source": "A README (= a paper)", "url_or_path": "a page, Table 1", "technique": "none", "parameters": {},
    "model": "runwayml/stable-diffusion-v1-5", "device": "A100", "dtype": "float16", "steps": 50, "scheduler": "DDIM",
    "guidance": None, "size": 512, "batch": 1, "images": None, "baseline": "not said", "metric": "latency per image",
    "value": 2.271, "unit": "s", "notes": "", "seen": "primary",
}  # fmt: skip


@pytest.fixture
def made_up():
    """One source of four claims: times, a ratio that is another one, and a time beyond a stock pipeline's bound."""
    said = (
        {}, {"technique": "DeepCache", "parameters": {"N": 2}, "value": 1.675},
        {"technique": "DeepCache", "parameters": {"N": 2}, "metric": "speedup", "unit": "x", "value": 1.8},
        {"technique": "TensorRT", "value": 0.3}, {"metric": "CLIP score", "unit": "cosine x100", "value": 30.1},
        {"metric": "FID", "unit": "", "value": 20.1},
    )  # fmt: skip
    claims = tuple(replace(rows.from_row({**ROW, **each}), label=f"x {number}") for number, each in enumerate(said, 1))
    bounds = {
        "x 3": Attainable("x 3", "possible", 1.8, 20.0, at_roofline=1.9, arithmetic="a"),
        "x 4": Attainable("x 4", "possible", 0.3, 0.2, 0.4, arithmetic="b"),
        "x 2": Attainable("x 2", "not bounded", arithmetic="the GPU is unstated"),
    }
    source = Published("x.json", "A README (= a paper)", claims)
    return survey.Survey((source,), checks.check(claims), bounds)


def test_what_was_found_is_said_with_its_assumption(made_up):
    text = " ".join(field_page.page(made_up, "field.png").split())
    assert "4 of 6 claims can be checked at all" in text  # three by each other, one by its bound
    assert "1 contradictions in 1 sources" in text
    assert "speedup 1.8× is 1.356× by its own figures. 2.271 s ÷ 1.675 s = 1.356×. *Assumed: the three figures" in text
    assert "| A README | 6 | 4 | 3 | 1 | - | 1 | guidance |" in text
    assert (
        "| A README | TensorRT | A100, batch 1 | latency per image 0.3 s | 0.4 s | a stock pipeline's | no guidance |"
        in text
    )
    assert "1 claimed speedups" in text
    assert "| guidance | 100% |" in text
    assert "What was measured here" not in text
    assert len(survey.plot(made_up)) > 1000


def test_curves_stand_beside_what_is_claimed_and_judge_nothing(made_up):
    run = Results(
        machine={"cpu": {"name": "Test CPU"}}, workload=Workload("shapes", "cpu", "float32", 20, 5.0, 64, 64, 4),
        measurements=(
            Measurement("baseline", "objects_right", "fraction", 0.97),
            Measurement("deepcache:2", "speedup", "×", 1.5, 1.4, 1.6),
            Measurement("deepcache:2", "objects_right", "fraction", 0.95),
            Measurement("sdpa", "speedup", "×", 1.1),
        ), command="pytest bench",
    )  # fmt: skip
    text = " ".join(field_page.page(replace(made_up, measured=(run,)), "field.png").split())
    assert "| deepcache:2 | 1.50× [1.40, 1.60] | 95.0% | - | - | 1.8× (A100) |" in text
    assert "no verdict on any of them" in text
    assert "| sdpa |" not in text
    full = replace(
        run, workload=Workload("sd15-random", "cpu", "float32", 5, 7.5, 256, 256, 1), measurements=run.measurements[1:2]
    )
    text = " ".join(field_page.page(replace(made_up, measured=(full, run)), "field.png").split())
    assert "| deepcache:2 | 1.50× [1.40, 1.60] | 1.50× [1.40, 1.60] | 95.0% | - | - | 1.8× (A100) |" in text
    assert "(shapes, 64×64, 0 pictures;" in text  # the run that has pictures judged is the one that is described
    assert "random weights of sd15-random (256×256, batch 1, 5 steps; that run was cut off)" in text
    quiet = replace(run, measurements=(run.measurements[0], run.measurements[2]))
    text = " ".join(field_page.page(replace(made_up, measured=(quiet,)), "field.png").split())
    assert "| deepcache:2 | 95.0% | - | - | 1.8× (A100) |" in text
    assert "Speed is missing" in text


def test_the_committed_page_is_of_the_committed_claims():
    sources = tuple(files.read(file) for file in sorted((ROOT / "expected" / "claims").glob("*.json")))
    claims = [claim for source in sources for claim in source.claims]
    bounds = published.read(ROOT / "expected" / "bounds.json")
    curves = tuple(Results.read(file) for file in sorted((ROOT / survey.MEASURED).glob("*/results.json")))
    made = field_page.page(survey.Survey(sources, checks.check(claims), bounds, curves), "field.png")
    assert made == (ROOT / "docs" / "field.md").read_text(), "optsd claims field"
    bounded = {claim.label for claim in claims if claim.metric.kind in published.MOST_RULES}
    assert bounded - set(bounds) <= {label for label in bounded if label.startswith("guide ")}

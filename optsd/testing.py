"""The contract of a technique, as tests for its author's own suite: it touches something, proves it, changes pictures
or does not, comes off again, and combines or is refused by name.

    from optsd.testing import TechniqueContract
    from my_package.technique import Mine

    class TestMine(TechniqueContract):
        technique = Mine()

`pipe` is a fixture that makes a pipeline: of the shipped model, unless the class has another one.
"""

import json
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

import optsd
from optsd import anatomy
from optsd.calls import parts
from optsd.errors import OptsdError, Unsupported
from optsd.measure.exactness import MOST, exactness
from optsd.measure.run import run_batch
from optsd.outside import breach
from optsd.patching import Optimization, Patch
from optsd.records import Workload
from optsd.variants import Variant, parse

BESIDE = ("sdpa", "flash", "kvcache", "int8", "int4", "deepcache:2", "tome:0.5")
"""Our techniques that it is combined with."""
PROMPTS = ["a small red circle on a beige background", "a large blue square on a white background"]


class TechniqueContract:
    """What every technique owes; `technique` is one, made as its variant's name makes it."""

    technique: ClassVar[Optimization]
    levels: ClassVar[int] = 1
    """Of 256: how far a pixel may be off where the technique says that it is exact."""

    @pytest.fixture
    def pipe(self) -> Callable[[], Any]:
        """Makes a new pipeline each time: float32, on the CPU."""
        return lambda: optsd.load("shapes", "cpu", "float32")

    @pytest.fixture
    def draw(self) -> Callable[[Any], np.ndarray]:
        return self.drawn

    def drawn(self, pipe: Any) -> np.ndarray:
        """Two pictures of three steps, N×H×W×3, whole numbers from 0 to 255."""
        work = Workload("any", "cpu", "float32", 3, 5.0, *self.size(pipe), batch_size=2)
        images = run_batch(pipe, work, PROMPTS, output_type="np")
        assert np.isfinite(images).all(), "it draws no pictures"
        return (images * 255).round().astype(int)

    def size(self, pipe: Any) -> tuple[int, int]:
        """Height and width in pixels: the model's own."""
        edge = anatomy.denoiser(pipe).config.sample_size * pipe.vae_scale_factor
        return edge, edge

    def applied(self, pipe: Any) -> Patch:
        return Variant(self.technique.name, (self.technique,)).apply(pipe)

    def test_it_keeps_the_protocol(self) -> None:
        problem = breach(self.technique, self.technique.name.partition(":")[0])
        assert not problem, problem

    def test_it_touches_what_is_there_and_proves_it(self, pipe, draw) -> None:
        made = pipe()
        patch = self.applied(made)
        networks = {name: part for name, part in made.components.items() if hasattr(part, "named_modules")}
        existing = {path for name, part in networks.items() for path, _ in part.named_modules(prefix=name)}
        assert patch.touched, "it touched nothing"
        assert not set(patch.touched) - existing, "it touched what is not there"
        idle = dict(patch.proof)
        draw(made)
        proof = patch.proof
        assert json.loads(json.dumps(proof)) == proof, "its proof cannot be written as JSON"
        counts = {key: value for key, value in proof.items() if isinstance(value, int | float)}
        assert any(value > idle.get(key, 0) for key, value in counts.items()), "nothing in its proof was counted"

    def test_its_pictures_are_what_it_says(self, pipe, draw) -> None:
        plain, made = pipe(), pipe()
        expected = draw(plain)
        self.applied(made)
        pictures = draw(made)
        assert np.array_equal(draw(made), pictures), "a second call does not give the same pictures"
        furthest = int(abs(pictures - expected).max())
        if self.technique.exact:
            assert furthest <= self.levels, f"it says that it is exact, and a pixel is off by {furthest} of 255"

    def test_it_errs_no_more_than_what_it_replaces(self, pipe) -> None:
        if not self.technique.exact:
            pytest.skip("it does not say that it is exact")
        plain, made = pipe(), pipe()
        self.applied(made)
        work = Workload("any", "cpu", "float32", 1, 5.0, *self.size(plain), batch_size=2)
        found = exactness(plain, made, lambda: run_batch(plain, work, PROMPTS, output_type="np"))
        assert found.ratio <= MOST, f"its error against float64 is {found.ratio:.3g} times what it replaces has"
        assert found.nan_alike, "a NaN in one picture does not go where it goes without it"

    def test_it_comes_off_to_the_bit_or_says_why_not(self, pipe, draw) -> None:
        made = pipe()
        before = draw(made)
        patch = self.applied(made)
        if any(part.why_lossy for part in (patch, *patch.parts)):
            with pytest.raises(OptsdError, match="cannot be undone: "):
                patch.undo()
            return
        draw(made)
        patch.undo()
        assert np.array_equal(draw(made), before), "the pictures are not what they were"
        assert not any(parts(module) for module in anatomy.denoiser(made).modules()), "something of it is left"

    @pytest.mark.parametrize("other", BESIDE)
    def test_it_combines_or_is_refused_by_name(self, pipe, draw, other: str) -> None:
        beside = parse(other).steps
        steps = sorted((self.technique, *beside), key=lambda step: (step.stage, step.name))
        if self.technique.slot in {step.slot for step in beside}:
            pytest.skip(f"both are about {self.technique.slot}: the name of the two together is refused")
        made = pipe()
        try:
            patch = Variant(f"{other}+{self.technique.name}", tuple(steps)).apply(made)
        except Unsupported as error:
            if self.technique.name not in str(error) or other not in str(error):
                pytest.fail(f"refused, and not by both names: {error}")
            return
        assert patch.touched, "together they touched nothing"
        draw(made)
        assert patch.active, f"{', '.join(patch.displaced)} was displaced"

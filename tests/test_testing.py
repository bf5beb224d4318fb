"""The contract for authors, on techniques of ours, and on some that break it."""

import dataclasses
from dataclasses import dataclass

import pytest

from optsd.errors import Unsupported
from optsd.optimizations.kvcache import KVCache
from optsd.patching import Patch, Stage
from optsd.testing import TechniqueContract


@pytest.fixture(autouse=True, scope="module")
def one_model():
    """The shipped weights are read once."""
    import copy

    import optsd

    model = optsd.load("shapes", "cpu", "float32")
    TechniqueContract.pipe = pytest.fixture(lambda self: lambda: copy.deepcopy(model))


class TestKVCache(TechniqueContract):
    technique = KVCache()

    @pytest.mark.parametrize("other", ["flash", "deepcache:2"])  # the others take longer
    def test_it_combines_or_is_refused_by_name(self, pipe, draw, other):
        super().test_it_combines_or_is_refused_by_name(pipe, draw, other)


@dataclass(frozen=True)
class Broken:
    """Says that it is exact, touches what is not there, counts nothing, stays on, refuses without a name."""

    name: str = "broken"
    exact: bool = True
    stage: Stage = Stage.REUSE
    slot: str = "broken"

    def check(self, pipe) -> None:
        if any(hasattr(module, "_refused") for module in pipe.unet.modules()):
            raise Unsupported("something is in the way", "leave it out")

    def apply(self, pipe) -> Patch:
        pipe.unet.conv_out.weight.data.mul_(0.5)
        return Patch(self.name, ("unet.no_such_module",))


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("test_it_touches_what_is_there_and_proves_it", "it touched what is not there"),
        ("test_its_pictures_are_what_it_says", "it says that it is exact, and a pixel is off by"),
        ("test_it_comes_off_to_the_bit_or_says_why_not", "the pictures are not what they were"),
    ],
)
def test_a_broken_technique_is_told_so(untrained, test: str, message: str) -> None:
    contract = type("Own", (TechniqueContract,), {"technique": Broken()})()
    with pytest.raises(AssertionError, match=message):
        getattr(contract, test)(untrained, contract.drawn)


def test_a_breach_of_the_protocol_is_told() -> None:
    wrong = dataclasses.make_dataclass("Wrong", [("name", str, "wrong")], frozen=True)
    contract = type("Own", (TechniqueContract,), {"technique": wrong()})()
    with pytest.raises(AssertionError, match="it lacks exact, stage, slot, check, apply"):
        contract.test_it_keeps_the_protocol()

"""Which layers each row of `optsd sensitivity` quantizes; what that costs takes minutes, and is in the docs."""

from fnmatch import fnmatchcase

import pytest

import optsd
from optsd import anatomy
from optsd.quality.sensitivity import ENDS, techniques


@pytest.mark.parametrize("bits", [8, 4])
def test_each_row_quantizes_its_kind_alone_in_its_bits(bits: int) -> None:
    rows = dict(techniques(bits))
    patterns = ENDS | anatomy.KINDS
    known = [kind for kind in patterns if kind in rows]  # a UNet has not all kinds
    assert [*rows][: len(known)] == known
    for kind in ("last convolution", "shortcut convolutions"):
        pipe = optsd.load("shapes", "cpu")
        patch = rows[kind].technique.apply(pipe)
        names = [name.removeprefix("unet.") for name in patch.touched]
        assert names
        assert all(fnmatchcase(name, patterns[kind]) for name in names), kind
        assert {pipe.unet.get_submodule(name).bits for name in names} == {bits}, kind

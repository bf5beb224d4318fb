import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optsd import models
from optsd.errors import BadInput, Unsupported
from optsd.generate import main


def test_a_list_of_variants_and_a_large_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a red circle", "--steps", "2", "--output", str(tmp_path), "--variant", "flash-enhanced, int8"]
    assert main([*words, "--variant=int8", "--seed", str(2**64 - 1), "--dtype", "torch.float32"]) == 0
    files = [tmp_path / name / "0000-a-red-circle.png" for name in ("flash-enhanced", "int8")]
    assert sorted(tmp_path.rglob("*.png")) == files
    exact, int8 = (np.asarray(Image.open(file), dtype=int) for file in files)
    assert exact.shape == (64, 64, 3)
    assert 0 < np.abs(exact - int8).mean() < 20  # of the same noise
    said = capsys.readouterr()
    assert re.search(r"int8: \d+ modules touched\n  int8 linear: \d+\n", said.out)
    assert "unet.conv_in (kept by 'conv_in')" in said.out
    assert "shapes knows coloured shapes only: 'a red circle' describes no scene; write, for example:" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--variant", "sdpa,nosuch"], "unknown variant 'nosuch'"),
        (["--seed", str(2**64)], "is too large; give 18446744073709551615 or less"),
        (["--output", "/proc/pictures"], "--output /proc/pictures cannot be written"),
        (["--model", "./nowhere"], "no model './nowhere'"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        main(["a red circle", *words])


def test_what_cannot_be_combined_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load", None)
    with pytest.raises(Unsupported, match="int4 and int8 cannot be combined|int8 and int4 cannot be combined"):
        main(["a red circle", "--variant", "sdpa,int8+int4"])

"""What does each quality metric say of pictures that are wrong in a known way?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optsd.errors import BadInput
from optsd.files import write_atomically
from optsd.records import dumps


@pytest.mark.audit
@pytest.mark.timeout(24 * 3600)
def test_audit(quality, build_afresh: Callable[[str], Any], output: Path, capsys) -> None:
    """Black, grey, noise, one picture over and over, other prompts', shifted, JPEG, a 2-bit UNet: audit.md, audit.json.

    The baseline's pictures are the healthy ones.
    """
    from optsd.quality import audits

    if isinstance(quality, BadInput):
        pytest.skip(str(quality))
    baseline = quality.judge.baseline
    damages = audits.damaged(baseline)
    damages[audits.TWO_BITS] = _drawn_by_two_bits(quality, build_afresh)
    findings = audits.audit(quality.judge, damages)
    write_atomically(output / "audit.md", audits.table(findings))
    write_atomically(output / "audit.json", dumps([finding.as_row() for finding in findings]))
    with capsys.disabled():
        print(f"\n{audits.table(findings)}written to {output / 'audit.md'}")
    for damage in damages:
        assert any(row.says == "worse" for row in findings if row.damage == damage), f"no metric sees: {damage}"


def _drawn_by_two_bits(quality, build_afresh):
    """The baseline's pictures with a UNet of four levels a weight. Their recipe has the hash of these weights."""
    from optsd.anatomy import denoiser
    from optsd.quality.audits import two_bits
    from optsd.quality.generate import fingerprint

    pipe = build_afresh("baseline")
    two_bits(denoiser(pipe))
    return quality.drawn("baseline", lambda: pipe, fingerprint(pipe))

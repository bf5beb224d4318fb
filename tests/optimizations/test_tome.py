import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from optsd.errors import BadInput, NothingMatched
from optsd.optimizations.tome import TokenMerging, matching, places

sizes = st.integers(2, 9)


@given(sizes, sizes, st.floats(0.01, 0.75))
def test_every_token_is_kept_merged_or_a_destination(rows, columns, ratio):
    tokens = torch.randn(2, rows * columns, 4)
    merge = matching(tokens, places(rows, columns, tokens.device), ratio)
    for sample in range(2):
        groups = torch.cat([merge.kept[sample], merge.merged[sample], merge.destinations])
        assert sorted(groups.tolist()) == list(range(rows * columns))
    assert merge.merged.shape[1] == min(int(rows * columns * ratio), rows * columns - len(merge.destinations))
    assert merge.apply(tokens).shape == (2, rows * columns - merge.merged.shape[1], 4)


@given(sizes, sizes)
def test_nothing_is_lost_where_tokens_are_alike(rows, columns):
    """2×2 cells of one colour each: whoever is merged goes into an equal."""
    cells = torch.randn(1, 4, (rows + 1) // 2, (columns + 1) // 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    tokens = cells[:, :, : rows // 2 * 2, : columns // 2 * 2].flatten(2).transpose(1, 2)
    merge = matching(tokens, places(rows // 2 * 2, columns // 2 * 2, tokens.device), 0.75)
    torch.testing.assert_close(merge.undo(merge.apply(tokens)), tokens)


@given(sizes, sizes, st.floats(0.01, 0.75))
def test_every_token_gets_the_result_of_what_it_went_into_in_one_gather(rows, columns, ratio):
    tokens = torch.randn(2, rows * columns, 4)
    merge = matching(tokens, places(rows, columns, tokens.device), ratio)
    merged = torch.randn_like(merge.apply(tokens))
    with CountedOperators() as seen:
        whole = merge.undo(merged)
    assert not {name for name in seen.names if "scatter" in name or "index_put" in name}  # slow where deterministic
    assert [name for name in seen.names if "gather" in name] == ["aten.gather.default"] * 2  # of places and of tokens
    kept, targets = merged.split([merge.kept.shape[1], len(merge.destinations)], dim=1)
    for sample in range(2):
        assert torch.equal(whole[sample, merge.kept[sample]], kept[sample])
        assert torch.equal(whole[sample, merge.destinations], targets[sample])
        assert torch.equal(whole[sample, merge.merged[sample]], targets[sample, merge.into[sample]])


class CountedOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


def test_a_destination_becomes_the_mean_and_gives_its_result_back():
    tokens = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [0.0, 7.0]]])
    merge = matching(tokens, places(2, 2, tokens.device), 0.25)
    (into,), (gone,) = merge.destinations.tolist(), merge.merged[0].tolist()
    whole = merge.undo(merge.apply(tokens))
    mean = (tokens[0, into] + tokens[0, gone]) / 2
    assert torch.equal(whole[0, into], mean)
    assert torch.equal(whole[0, gone], mean)
    for kept in merge.kept[0].tolist():
        assert torch.equal(whole[0, kept], tokens[0, kept])


@pytest.mark.parametrize(("family", "place"), [("sd15", "down_blocks.0"), ("sdxl", "down_blocks.1")])
def test_merges_at_the_finest_resolution_with_attention(small_unet, bare, denoise, family, place):
    unet = small_unet(family)
    plain = denoise(unet, size=(8, 12))
    patch = TokenMerging(0.5).apply(bare(unet))
    assert any(place in name for name in patch.touched)
    assert not any("mid_block" in name for name in patch.touched)
    lengths: set[int] = set()
    layer = unet.get_submodule(patch.touched[0].removeprefix("unet."))
    layer.to_q.register_forward_pre_hook(lambda _, inputs: lengths.add(inputs[0].shape[1]))
    merged = denoise(unet, size=(8, 12))
    assert lengths == {48 if family == "sd15" else 12}
    assert 0 < (merged - plain).abs().max() < 1
    assert patch.proof["merged_calls"] == 3 * len(patch.touched)
    patch.undo()
    assert torch.equal(denoise(unet, size=(8, 12)), plain)


def test_refusals(small_unet, bare):
    for text in ("", "0", "0.8", "nan", "x", "0.50", "-0.5"):
        with pytest.raises(BadInput, match="is no ratio; give the fraction of tokens to merge"):
            TokenMerging.from_text(text)
    untold = small_unet(
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type="UNetMidBlock2D"
    )
    with pytest.raises(NothingMatched, match="no self-attention"):
        TokenMerging().apply(bare(untold))

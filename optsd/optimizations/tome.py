"""Token merging for Stable Diffusion (Bolya & Hoffman, CVPR workshops 2023). Approximate.

At the highest resolution that has attention, the most similar tokens are averaged before self-attention and get the
common result after it. The mathematics (`places`, `matching`, `Merge`) stands apart from the patching.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from optsd import anatomy
from optsd.calls import Call
from optsd.errors import BadInput, NothingMatched
from optsd.patching import Interposed, Patch, Pipeline, Stage
from optsd.state import Tally, Turn


@dataclass(frozen=True)
class TokenMerging:
    """Merge this fraction of the tokens, at most 0.75. Pays where self-attention is most of the work."""

    ratio: float = 0.5
    exact: bool = False
    stage: Stage = Stage.REUSE
    slot: str = "tokens"

    @property
    def name(self) -> str:
        return f"tome:{self.ratio:g}"

    @classmethod
    def from_text(cls, text: str) -> "TokenMerging":
        """Raises BadInput unless `text` is a fraction above 0 and up to 0.75."""
        try:
            ratio = float(text)
        except ValueError:
            ratio = math.nan
        if not 0 < ratio <= 0.75 or f"{ratio:g}" != text:
            raise BadInput(f"tome:{text} is no ratio", "give the fraction of tokens to merge, up to 0.75: tome:0.5")
        return cls(ratio)

    def check(self, pipe: Pipeline) -> None:
        anatomy.check_unet(pipe, self.name, "whose finest level has most of the tokens")

    def apply(self, pipe: Pipeline) -> Patch:
        unet = anatomy.denoiser(pipe)
        level, blocks = _finest(unet)
        if not blocks:
            raise NothingMatched(f"{self.name} found no self-attention in the UNet", "leave tome out")
        merging = _Merging(level, self.ratio, layers=len(blocks))
        places = [f"{name}.attn1" for name in blocks]
        changes = (*(Interposed(unet, place, _Merged(merging)) for place in places), Interposed(unet, "", merging))
        return Patch(self.name, tuple(f"unet.{place}" for place in places), merging.proof, changes)


def _finest(unet: nn.Module) -> tuple[int, list[str]]:
    """The highest resolution with self-attention, as the number of halvings before it, and its transformer blocks."""
    blocks: Any = unet
    levels = len(blocks.down_blocks)
    for level in range(levels):
        places = {f"down_blocks.{level}": blocks.down_blocks[level]}
        places[f"up_blocks.{levels - 1 - level}"] = blocks.up_blocks[levels - 1 - level]
        found = [
            f"{place}.{name}"
            for place, block in places.items()
            for name, module in block.named_modules()
            if isinstance(module, BasicTransformerBlock) and not module.only_cross_attention
        ]
        if found:
            return level, found
    return 0, []


class _Merging:
    """Before the UNet's calls: tells the attention layers of one resolution how their tokens lie in the picture.

    One call at a time runs in the UNet, as the layers read that from here.
    """

    def __init__(self, level: int, ratio: float, layers: int) -> None:
        self.level, self.ratio, self.layers = level, ratio, layers
        self.turn, self.tally = Turn(), Tally()
        self.places = Places(torch.empty(0), torch.empty(0))

    @torch.compiler.disable(recursive=False)
    def __call__(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        sample = anatomy.argument(call.module, anatomy.SAMPLE, args, kwargs)
        with self.turn.lock:
            # Each halving is a convolution of stride 2 that rounds up.
            rows, columns = (math.ceil(side / 2**self.level) for side in sample.shape[-2:])
            self.places = places(rows, columns, sample.device)
            return call(*args, **kwargs)

    def proof(self) -> dict[str, Any]:
        return {"merging_layers": self.layers, "merged_calls": self.tally["merged"], "merged_ratio": self.ratio}


class _Merged:
    """Before the calls of a self-attention layer, which gets merged tokens."""

    replayable = True

    def __init__(self, merging: _Merging) -> None:
        self.merging = merging

    def __call__(
        self,
        call: Call,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None:
            return call(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        merge = matching(hidden_states, self.merging.places, self.merging.ratio)
        self.merging.tally.add("merged")
        return merge.undo(call(merge.apply(hidden_states), **kwargs))


@dataclass(frozen=True)
class Places:
    """Which tokens of a grid others can go into, and all others; both in order."""

    destinations: Tensor  # D, one a whole 2×2 cell
    sources: Tensor  # N - D


@cache
def places(rows: int, columns: int, device: torch.device) -> Places:
    """One destination in every 2×2 cell, at a place that is drawn once for each size.

    Pseudo-random, as a regular grid shows in the picture; the same every time, so that images can be repeated. They are
    never let go: a recorded step reads them where they lie.
    """
    generator = torch.Generator().manual_seed(rows * 65537 + columns)
    place = torch.randint(4, (rows // 2, columns // 2), generator=generator)
    row = 2 * torch.arange(rows // 2)[:, None] + place // 2
    column = 2 * torch.arange(columns // 2) + place % 2
    chosen = torch.zeros(rows * columns, dtype=torch.bool)
    chosen[(row * columns + column).flatten()] = True
    return Places(chosen.nonzero()[:, 0].to(device), (~chosen).nonzero()[:, 0].to(device))


def matching(tokens: Tensor, grid: Places, ratio: float) -> "Merge":
    """Bipartite soft matching: which `ratio` of the B×N×C tokens go into which others.

    Each source has one most similar destination (cosine); those that are most similar to theirs are merged into it.
    """
    unit = F.normalize(tokens.float(), dim=-1)
    similarity, nearest = (unit[:, grid.sources] @ unit[:, grid.destinations].mT).max(dim=-1)  # B×(N - D)
    order = similarity.argsort(dim=-1, descending=True)
    count = min(len(grid.sources), int(tokens.shape[1] * ratio))
    merged, kept = order[:, :count], order[:, count:]
    into = nearest.gather(1, merged)
    return Merge(grid.sources[kept], grid.sources[merged], into, grid.destinations)


@dataclass(frozen=True)
class Merge:
    """Who goes into whom: indices of tokens, but for `into`, which indexes the destinations."""

    kept: Tensor  # B×K
    merged: Tensor  # B×M
    into: Tensor  # B×M
    destinations: Tensor  # D, the same in the whole batch

    def apply(self, tokens: Tensor) -> Tensor:
        """B×N×C -> B×(K+D)×C: destinations become the mean of themselves and of what goes into them."""
        going = _take(tokens, self.merged)
        targets = tokens[:, self.destinations].scatter_reduce(1, _wide(self.into, going), going, "mean")
        return torch.cat([_take(tokens, self.kept), targets], dim=1)

    def undo(self, merged: Tensor) -> Tensor:
        """B×(K+D)×C -> B×N×C: every token gets the result of the token that it went into."""
        return _take(merged, self._places())

    def _places(self) -> Tensor:
        """B×N: where each token's result stands in the merged sequence.

        A permutation is turned around by sorting it: scattering whole tokens would be slow on a GPU, where the
        deterministic mode sorts for each of their numbers.
        """
        batch, count = self.kept.shape
        ends = torch.arange(count + len(self.destinations), device=self.kept.device).expand(batch, -1)
        tokens = torch.cat([self.kept, self.destinations.expand(batch, -1), self.merged], dim=1)
        places = torch.cat([ends, count + self.into], dim=1)
        return places.gather(1, tokens.argsort(dim=1))


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """B×N×C and B×M -> B×M×C."""
    return tokens.gather(1, _wide(index, tokens))


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])

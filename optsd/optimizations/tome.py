"""Token merging for Stable Diffusion (Bolya & Hoffman, CVPR workshops 2023). Approximate.

At the highest resolution that has attention, the most similar tokens are averaged before self-attention and get the
common result after it. The mathematics (`places`, `matching`, `Merge`) stands apart from the patching.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from optsd.errors import BadInput, NothingMatched
from optsd.optimizations.attention import check_unet
from optsd.optimizations.state import Tally, Turn
from optsd.patching import Patch, Pipeline, Stage, in_reverse, replace_attribute


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
        check_unet(pipe, self.name)

    def apply(self, pipe: Pipeline) -> Patch:
        level, blocks = _finest(pipe.unet)
        size = _Size(pipe.unet, level)
        layers = {f"{name}.attn1": block.attn1 for name, block in blocks.items()}
        if not layers:
            raise NothingMatched(f"{self.name} found no self-attention in the UNet", "leave tome out")
        merged = {name: _Merged(layer, size, self.ratio) for name, layer in layers.items()}
        restores = [replace_attribute(layer, "forward", merged[name].forward) for name, layer in layers.items()]
        restores.append(replace_attribute(pipe.unet, "forward", size.forward))

        def read_proof() -> dict[str, Any]:
            return {"merging_layers": len(layers), "merged_calls": size.tally["merged"], "merged_ratio": self.ratio}

        return Patch(self.name, tuple(layers), read_proof, in_reverse(restores))


def _finest(unet: nn.Module) -> tuple[int, dict[str, BasicTransformerBlock]]:
    """The highest resolution with self-attention, as the number of halvings before it, and its transformer blocks."""
    blocks: Any = unet
    levels = len(blocks.down_blocks)
    for level in range(levels):
        places = {f"down_blocks.{level}": blocks.down_blocks[level]}
        places[f"up_blocks.{levels - 1 - level}"] = blocks.up_blocks[levels - 1 - level]
        found = {
            f"unet.{place}.{name}": module
            for place, block in places.items()
            for name, module in block.named_modules()
            if isinstance(module, BasicTransformerBlock) and not module.only_cross_attention
        }
        if found:
            return level, found
    return 0, {}


class _Size:
    """Tells the attention layers of one resolution how many rows and columns their tokens have.

    One call at a time runs in the UNet, as the layers read the size from here.
    """

    def __init__(self, unet: nn.Module, level: int) -> None:
        self.whole, self.level = unet.forward, level
        self.turn, self.tally = Turn(), Tally()
        self.places = Places(torch.empty(0), torch.empty(0))

    def forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        with self.turn.lock:
            # Each halving is a convolution of stride 2 that rounds up.
            rows, columns = (math.ceil(side / 2**self.level) for side in sample.shape[-2:])
            self.places = places(rows, columns, sample.device)
            return self.whole(sample, *args, **kwargs)


class _Merged:
    """One self-attention layer on merged tokens."""

    def __init__(self, layer: Attention, size: _Size, ratio: float) -> None:
        self.whole, self.size, self.ratio = layer.forward, size, ratio

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None:
            return self.whole(hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        merge = matching(hidden_states, self.size.places, self.ratio)
        self.size.tally.add("merged")
        return merge.undo(self.whole(merge.apply(hidden_states), **kwargs))


@dataclass(frozen=True)
class Places:
    """Which tokens of a grid others can go into, and all others; both in order."""

    destinations: Tensor  # D, one a whole 2×2 cell
    sources: Tensor  # N - D


@lru_cache(maxsize=16)
def places(rows: int, columns: int, device: torch.device) -> Places:
    """One destination in every 2×2 cell, at a place that is drawn once for each size.

    Pseudo-random, as a regular grid shows in the picture; the same every time, so that images can be repeated.
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
    return Merge(grid.sources[kept], grid.sources[merged], into, grid.destinations, tokens.shape[1])


@dataclass(frozen=True)
class Merge:
    """Who goes into whom: indices of tokens, but for `into`, which indexes the destinations."""

    kept: Tensor  # B×K
    merged: Tensor  # B×M
    into: Tensor  # B×M
    destinations: Tensor  # D, the same in the whole batch
    tokens: int  # N = K + M + D

    def apply(self, tokens: Tensor) -> Tensor:
        """B×N×C -> B×(K+D)×C: destinations become the mean of themselves and of what goes into them."""
        going = _take(tokens, self.merged)
        targets = tokens[:, self.destinations].scatter_reduce(1, _wide(self.into, going), going, "mean")
        return torch.cat([_take(tokens, self.kept), targets], dim=1)

    def undo(self, merged: Tensor) -> Tensor:
        """B×(K+D)×C -> B×N×C: every token gets the result of the token that it went into."""
        kept, targets = merged.split([self.kept.shape[1], len(self.destinations)], dim=1)
        whole = merged.new_empty(len(merged), self.tokens, merged.shape[-1])
        whole[:, self.destinations] = targets
        whole.scatter_(1, _wide(self.kept, kept), kept)
        going = _take(targets, self.into)
        return whole.scatter_(1, _wide(self.merged, going), going)


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """B×N×C and B×M -> B×M×C."""
    return tokens.gather(1, _wide(index, tokens))


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])

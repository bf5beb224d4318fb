"""The vision transformers of FD-DINOv2 and CMMD, made from nothing but the tensors of their pinned weights.

torch-fidelity knows both, and would fetch DINOv2's source and run it, and CLIP as a TorchScript program. Here both are
classes of installed libraries. DINOv2's is timm's, whose features are the original's to the bit.
"""

from collections.abc import Mapping

import timm
import torch
from torch import nn
from torch.nn import functional
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from optsd.errors import BadInput

Tensors = Mapping[str, torch.Tensor]
_PATCH = 14  # pixels of a side
_OFFSET = 0.1  # of a patch: what the original adds where it scales its positions, against rounding
CLIP_LARGE = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=_PATCH,
    projection_dim=768,
)


class DinoV2(FeatureExtractorDinoV2):
    """torch-fidelity's extractor, which scales and normalizes the pictures, about a network that it need not fetch."""

    def __init__(self, network: nn.Module) -> None:
        FeatureExtractorBase.__init__(self, "dinov2-vit-l-14", ["dinov2"])
        self.feature_extractor_internal_dtype = torch.float32
        self.model = network
        self.requires_grad_(False).eval()


def dinov2(tensors: Tensors, size: str = "large") -> DinoV2:
    """The extractor with the original's weights, as its authors publish them. Raises BadInput where they do not fit."""
    side = FeatureExtractorDinoV2.INPUT_IMAGE_SIZE
    network = timm.create_model(f"vit_{size}_patch{_PATCH}_dinov2", img_size=side, num_classes=0)
    own = {name: tensor for name, tensor in tensors.items() if name != "mask_token"}  # of training alone
    if "pos_embed" in own:
        own["pos_embed"] = _scaled(own["pos_embed"], side // _PATCH)
    return DinoV2(_filled(network, own, "DINOv2", "dinov2"))


def _scaled(positions: torch.Tensor, side: int) -> torch.Tensor:
    """1×(1 + M²)×D embeddings of a class token and M×M patches, for side×side patches."""
    before = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].unflatten(1, (before, before)).movedim(3, 1)
    # By this factor and not to this size, nor with timm's filter: each gives other positions than the original's.
    grid = functional.interpolate(grid, scale_factor=(side + _OFFSET) / before, mode="bicubic")
    return torch.cat([positions[:, :1], grid.flatten(2).mT], 1)


def clip_vision(tensors: Tensors, config: CLIPVisionConfig = CLIP_LARGE) -> CLIPVisionModelWithProjection:
    """CLIP's image encoder; what else the file has is left out. Raises BadInput where the weights do not fit."""
    network = CLIPVisionModelWithProjection(config)
    own = {name: tensor for name, tensor in tensors.items() if name in network.state_dict()}
    return _filled(network, own, "CLIP", "clip-large")


def _filled(network: nn.Module, tensors: Tensors, what: str, download: str) -> nn.Module:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise BadInput(
            f"the {what} weights are not whole ({reason})", f"fetch them again: optsd coco fetch {download}"
        ) from error
    return network.float().requires_grad_(False).eval()

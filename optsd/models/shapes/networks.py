"""The architectures of the shipped models: SD v1.5's and SD3's own classes, small; their classifier; their CLIP.

Sizes: UNet 8.6 M parameters and transformer 3.5 M on 4×16×16 latents; the other networks under 1 M each.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from optsd.models.shapes import scenes
from optsd.models.tokenizer import byte_level_tokenizer

TEXT_WIDTH = 128
CONTEXT_LENGTH = 32  # tokens; the longest caption has 19


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Every word of the captions is one token. Leaves the tokenizer's files in `folder`."""
    words = {"a", "on", "background", *scenes.SHAPES, *scenes.COLOURS, *scenes.BACKGROUNDS, *scenes.SIZES}
    words.update(word for relation in scenes.RELATIONS for word in relation.split())
    return byte_level_tokenizer(folder, words, CONTEXT_LENGTH)


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )


def autoencoder() -> AutoencoderKL:
    widths = (16, 32, 64)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=scenes.IMAGE_SIZE,
    )


def unet() -> UNet2DConditionModel:
    # Without attention at 16×16: it costs two fifths of a training step, and the 8×8 layers suffice to place things.
    # attention_head_dim is, in SD v1.5's configuration too, the number of heads.
    return UNet2DConditionModel(
        sample_size=scenes.IMAGE_SIZE // 4,
        block_out_channels=(64, 128, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """DDIM with zero terminal SNR and v-prediction, so that sampling starts where training ends.

    Plain ε-prediction leaks the picture's mean colour at the last timestep, which small latents make worse
    (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023).
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # means nothing with trailing spacing; diffusers warns about 0
    )


def pipeline(**components) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        **components, scheduler=scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def dit() -> SD3Transformer2DModel:
    """SD3.5's joint blocks, small, initialized as in DiT (Peebles and Xie, 2023): every block begins as the identity.

    diffusers leaves the first weights to PyTorch's defaults, with which the modulations are noise.
    """
    model = SD3Transformer2DModel(
        sample_size=scenes.IMAGE_SIZE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=32,
        caption_projection_dim=128,  # heads times their size: text and image tokens have one width
        joint_attention_dim=2 * TEXT_WIDTH,  # both text encoders' features side by side
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
            if name == "proj_out" or (".norm1" in name or name.startswith("norm_out")):
                nn.init.zeros_(module.weight)
            elif name.startswith("time_text_embed"):
                nn.init.normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
    return model


def projecting(text: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The same text encoder in the class that SD3 asks for, with the identity as its projection."""
    model = CLIPTextModelWithProjection(text.config).to(text.dtype)
    model.text_model.load_state_dict(text.state_dict())
    nn.init.eye_(model.text_projection.weight)
    return model


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths from noise to picture, evenly spaced: SD3's shift of 3 is for its 4,096 tokens, not for 64."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def dit_pipeline(
    vae: AutoencoderKL, text: CLIPTextModelWithProjection, tokens: CLIPTokenizer, transformer: SD3Transformer2DModel
) -> StableDiffusion3Pipeline:
    """SD3's pipeline without T5, one text encoder in the place of its two."""
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow_scheduler(),
        vae=vae,
        text_encoder=text,
        tokenizer=tokens,
        text_encoder_2=text,
        tokenizer_2=tokens,
        text_encoder_3=None,
        tokenizer_3=None,
    )


class Classifier(nn.Module):
    """Which of the 24 kinds of object are in a picture.

    A fully convolutional network scores every class at each of 8×8 places; an object is present when it is
    somewhere, so a class's logit is the maximum over places. `features` are the pooled activations.
    """

    FEATURES = 64

    def __init__(self) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
            )

        self.trunk = nn.Sequential(
            stage(3, 24, 1),
            stage(24, 32, 2),
            stage(32, 48, 1),
            stage(48, 64, 2),
            stage(64, 64, 1),
            stage(64, 96, 2),
            stage(96, 96, 1),
            stage(96, self.FEATURES, 1),
        )
        self.head = nn.Conv2d(self.FEATURES, len(scenes.CLASSES), 1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """N×3×H×W uint8 -> N×64 float32."""
        return self.trunk(images.float() / 127.5 - 1).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """N×3×H×W uint8 -> N×24 logits; the sigmoid of each is the probability that the object is there."""
        return self.head(self.trunk(images.float() / 127.5 - 1)).amax((2, 3))


def clip(tokens: CLIPTokenizer) -> nn.Module:
    """open_clip's own CLIP at a small size. Images are N×3×64×64 in [-1, 1]; text is N×32 token ids."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    return CLIP(
        embed_dim=64,
        vision_cfg=CLIPVisionCfg(layers=4, width=96, head_width=24, patch_size=8, image_size=scenes.IMAGE_SIZE),
        text_cfg=CLIPTextCfg(
            context_length=CONTEXT_LENGTH,
            vocab_size=len(tokens),
            width=96,
            heads=4,
            layers=3,
            pad_id=tokens.pad_token_id,
        ),
    )

"""The networks that judge images: the field's standard ones, and the shipped model's own. Never confused: see `suffix`.

Images are N×H×W×3, uint8, everywhere here; they and the networks go to the device that the networks were asked for.
A GPU multiplies in float32 here, never in TF32, whose ten bits would show in the figures. A network whose weights are
missing raises NotFound, which names the file.
"""

import io
import pickle
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

import lpips
import numpy as np
import torch
import torch_fidelity
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import create_feature_extractor

from optsd.data import downloads
from optsd.errors import BadInput, NotFound
from optsd.models.shapes import WEIGHTS, networks, scenes

BATCH = 32  # images a network sees at once: fixed, because the batch decides the last bits of its output


class Networks(Protocol):
    """What the metrics need of a family of networks. `suffix` ends the names of the metrics it gives."""

    suffix: str

    def made_by(self, reading: str) -> list[str]:
        """What decides a reading (a method below) beside the pictures: the weights' hashes, and a GPU."""

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """N×D features for FID and KID, N×C class logits for the Inception Score."""

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        """N×D CLIP embeddings of the images, of length 1, for CMMD."""

    def agreement(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """The cosine between each image's and its text's CLIP embedding: N values, -1 to 1 (not times 100)."""

    def distances(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Perceptual distance of each image to its counterpart: N values, 0 for equal images."""


@runtime_checkable
class PhotographNetworks(Networks, Protocol):
    """Networks that know the world: DINOv2 is made for photographs, and has no small counterpart."""

    def dinov2(self, images: np.ndarray) -> np.ndarray:
        """N×1024 features, as torch-fidelity has them, for FD-DINOv2."""


class ShapesExtractor(FeatureExtractorBase):
    """The shipped classifier, as torch-fidelity knows feature extractors."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **_) -> None:
        super().__init__(name, features_list)
        self.network: Any = _load(networks.Classifier(), Path(feature_extractor_weights_path))

    @staticmethod
    def get_provided_features_list():
        return ("64", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"isc": "logits", "fid": "64", "kid": "64", "prc": "64"}[metric]

    @staticmethod
    def can_be_compiled():
        return True

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, dtype=torch.uint8)

    def forward(self, images):
        found = {"64": self.network.features, "logits": self.network}
        return tuple(found[name](images) for name in self.features_list)


torch_fidelity.register_feature_extractor("optsd-shapes", ShapesExtractor)


class ShapesNetworks:
    """The shipped model's judges: a classifier of its 24 kinds of object, and a small CLIP. Both see 64×64 pixels."""

    suffix = "_shapes"

    def __init__(self, folder: Path = WEIGHTS, device: str = "cpu") -> None:
        self.folder, self.device = folder, device

    def made_by(self, reading: str) -> list[str]:
        network = "clip" if reading in ("agreement", "embeddings") else "classifier"
        file = self.folder / f"{network}.safetensors"
        _require(file)
        return ["shapes", downloads.sha256_of(file), *_named(self.device)]

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = _extract(self._extractor, _resized(images, scenes.IMAGE_SIZE), self.device)
        return found["64"], found["logits"]

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        model, _ = self._clip

        def embedded(pictures: torch.Tensor) -> torch.Tensor:
            return model.encode_image(pictures.float() / 127.5 - 1, normalize=True)

        return _batched(embedded, self.device, _to_tensor(_resized(images, scenes.IMAGE_SIZE)))

    def agreement(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        model, tokenizer = self._clip
        ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids

        def cosines(pictures: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            image = model.encode_image(pictures.float() / 127.5 - 1, normalize=True)
            return (image * model.encode_text(tokens, normalize=True)).sum(-1)

        return _batched(cosines, self.device, _to_tensor(_resized(images, scenes.IMAGE_SIZE)), ids)

    def distances(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        """LPIPS without its learned weights (Zhang et al., 2018, equation 1 with w = 1), on the classifier's layers."""
        trunk = self._extractor.network.trunk

        def distance(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            left, right, total = left.float() / 127.5 - 1, right.float() / 127.5 - 1, left.new_zeros(len(left)).float()
            for stage in trunk:
                left, right = stage(left), stage(right)
                difference = lpips.normalize_tensor(left) - lpips.normalize_tensor(right)
                total += difference.square().sum(1).mean((1, 2))
            return total / len(trunk)

        size = scenes.IMAGE_SIZE
        return _batched(distance, self.device, _to_tensor(_resized(images, size)), _to_tensor(_resized(others, size)))

    @cached_property
    def _extractor(self) -> Any:
        made = create_feature_extractor(
            "optsd-shapes",
            ["64", "logits"],
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=str(self.folder / "classifier.safetensors"),
        )
        return made.to(self.device)

    @cached_property
    def _clip(self) -> tuple[Any, Callable]:
        with TemporaryDirectory() as folder:
            tokenizer = networks.tokenizer(Path(folder))
        return _load(networks.clip(tokenizer), self.folder / "clip.safetensors").to(self.device), tokenizer


@cache
def shapes_networks(device: str = "cpu") -> ShapesNetworks:
    """The judges with the shipped weights, loaded once."""
    return ShapesNetworks(device=device)


class StandardNetworks:
    """Inception-v3 as FID has it and DINOv2 (torch-fidelity), LPIPS on AlexNet (lpips), OpenAI's CLIP: ViT-B/32 for the
    score (open_clip), ViT-L/14 at 336 pixels for CMMD (transformers).

    `folder` is looked into before optsd's own folder and the other programs' caches. Every file's hash is pinned.
    """

    suffix = ""

    def __init__(self, folder: Path | None = None, device: str = "cpu") -> None:
        self.folder, self.device = folder, device

    def made_by(self, reading: str) -> list[str]:
        name = _WEIGHTS[reading]
        return [name, downloads.sha256_of(downloads.find_weights(name, self.folder)), *_named(self.device)]

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = _extract(self._inception, images, self.device)
        return found["2048"], found["logits_unbiased"]

    def dinov2(self, images: np.ndarray) -> np.ndarray:
        return _extract(self._dinov2, images, self.device)["dinov2"]

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        from open_clip.transform import image_transform

        network = self._clip_large

        def embedded(pictures: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(network(pictures).image_embeds, dim=-1)

        prepare = _prepared(image_transform(network.config.image_size, is_train=False))
        return _batched(embedded, self.device, torch.from_numpy(images), prepare=prepare)

    def agreement(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        import open_clip

        model, prepare = self._clip
        ids = open_clip.get_tokenizer(CLIP_NAME)(list(texts))

        def cosines(pictures: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            image = model.encode_image(pictures, normalize=True)
            return (image * model.encode_text(tokens, normalize=True)).sum(-1)

        return _batched(cosines, self.device, torch.from_numpy(images), ids, prepare=_prepared(prepare))

    def distances(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        network = self._lpips

        def distance(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return network(left.float() / 127.5 - 1, right.float() / 127.5 - 1).flatten()

        return _batched(distance, self.device, _to_tensor(images), _to_tensor(others))

    @cached_property
    def _inception(self) -> FeatureExtractorInceptionV3:
        # torch-fidelity would unpickle the file without restriction. It gets tensors only, read by torch's safe loader.
        tensors, stream = _read_tensors(downloads.find_weights("inception", self.folder)), io.BytesIO()
        torch.save(tensors, stream)
        stream.seek(0)
        made = create_feature_extractor(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=stream,
        )
        return made.to(self.device)

    @cached_property
    def _dinov2(self) -> FeatureExtractorBase:
        from optsd.quality import backbones

        return backbones.dinov2(_read_tensors(downloads.find_weights("dinov2", self.folder))).to(self.device)

    @cached_property
    def _clip_large(self) -> Any:
        from optsd.quality import backbones

        return backbones.clip_vision(_read_tensors(downloads.find_weights("clip-large", self.folder))).to(self.device)

    @cached_property
    def _lpips(self) -> nn.Module:
        tensors = _read_tensors(downloads.find_weights("alexnet", self.folder))
        with warnings.catch_warnings():  # lpips calls torchvision in a way that will be gone one day
            warnings.simplefilter("ignore", UserWarning)
            network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        own = {
            f"net.{name}.{index}.{key}": tensors[f"features.{index}.{key}"]
            for name, part in network.net.named_children()
            for index, layer in part.named_children()
            for key in layer.state_dict()
        }
        missing = network.load_state_dict(own, strict=False).missing_keys
        if any(key.startswith("net.") for key in missing):
            raise BadInput("the AlexNet weights are not whole", "fetch them again: optsd coco fetch alexnet")
        return network.requires_grad_(False).eval().to(self.device)

    @cached_property
    def _clip(self) -> tuple[Any, Callable]:
        import open_clip

        file = downloads.find_weights("clip", self.folder)
        model, prepare = open_clip.create_model_from_pretrained(CLIP_NAME, pretrained=str(file))
        return model.requires_grad_(False).eval().to(self.device), prepare


CLIP_NAME = "ViT-B-32-quickgelu"
_WEIGHTS = {
    "features": "inception",
    "dinov2": "dinov2",
    "embeddings": "clip-large",
    "agreement": "clip",
    "distances": "alexnet",
}


class NoNetworks:
    """In place of networks whose judgement would mean nothing: every metric is `not measured`, with the reason."""

    suffix = ""

    def __init__(self, reason: BadInput) -> None:
        self.reason = reason

    def made_by(self, reading: str) -> list[str]:
        raise self.reason

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise self.reason

    def dinov2(self, images: np.ndarray) -> np.ndarray:
        raise self.reason

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        raise self.reason

    def agreement(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        raise self.reason

    def distances(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        raise self.reason


def _extract(extractor: FeatureExtractorBase, images: np.ndarray, device: str) -> dict[str, np.ndarray]:
    with torch.no_grad(), _in_float32(device):
        found = [
            extractor.convert_features_tuple_to_dict(extractor(batch.to(device)))
            for batch in _to_tensor(images).split(BATCH)
        ]
    return {name: torch.cat([each[name].cpu() for each in found]).numpy() for name in found[0]}


def _batched(
    function: Callable[..., torch.Tensor],
    device: str,
    *inputs: torch.Tensor,
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda batch: batch,
) -> np.ndarray:
    """The function of each batch of the inputs, on the device; `prepare` makes there of the first one, before."""
    found = []
    with torch.no_grad(), _in_float32(device):
        for first, *rest in zip(*(tensor.split(BATCH) for tensor in inputs), strict=True):
            found.append(function(prepare(first).to(device), *(each.to(device) for each in rest)).cpu())
    return torch.cat(found).double().numpy()


def _prepared(prepare: Callable[[Image.Image], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """CLIP's own preparation of each picture of a batch, with PIL, as its authors do."""
    return lambda pictures: torch.stack([prepare(Image.fromarray(picture.numpy())) for picture in pictures])


def _in_float32(device: str) -> AbstractContextManager[Any]:
    """Without TF32, and with the same algorithms every time."""
    if device == "cpu":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def _named(device: str) -> list[str]:
    """The GPU, which decides last bits; the CPU's kind is in the key of whatever is read (`readings.code_version`)."""
    return [] if device == "cpu" else [torch.cuda.get_device_name(device)]


def _to_tensor(images: np.ndarray) -> torch.Tensor:
    """N×H×W×3 -> N×3×H×W, uint8."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([_resize(image, size) for image in images])


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _load(network: nn.Module, file: Path) -> nn.Module:
    """The network with weights from a safetensors file (stored in half precision), in float32, to judge with."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _require(file)
    try:
        tensors = load_file(file)
        network.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in tensors.items()})
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise BadInput(f"{file} does not fit ({str(error).splitlines()[0]})", "make it again, or restore it") from error
    return network.requires_grad_(False).eval()


def _require(file: Path) -> None:
    if not file.is_file():
        raise NotFound(f"{file} is missing", "make it with: python -m optsd.models.shapes.train --export")


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or .pth file. A pickle is read by torch's restricted loader: tensors, no code."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BadInput(f"{file} holds more than tensors, or less", "delete it and fetch it again") from error

"""The networks that judge: known truths, real photographs, and what is said when weights are missing."""

import hashlib
import io
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch.overrides import TorchFunctionMode

from optsd.data import downloads, prompts
from optsd.errors import BadInput, NotFound
from optsd.models.shapes import WEIGHTS, networks
from optsd.quality import features, metrics, reference
from optsd.quality.features import ShapesNetworks, StandardNetworks
from optsd.quality.measure import Judge
from optsd.quality.reference import Reference

COUNT = 48


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path: Path, monkeypatch) -> None:
    for name in ("OPTSD_HOME", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


@pytest.fixture(scope="session")
def untrained_judges(tmp_path_factory) -> ShapesNetworks:
    """The shipped judges' architectures with random weights: enough to see that the path to them works."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    tokens = networks.tokenizer(folder / "tokenizer")
    for name, network in (("classifier", networks.Classifier()), ("clip", networks.clip(tokens))):
        state = {key: t.half() if t.is_floating_point() else t for key, t in network.state_dict().items()}
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / f"{name}.safetensors")
    return ShapesNetworks(folder)


@pytest.fixture(scope="session")
def trained() -> ShapesNetworks:
    for name in ("classifier", "clip"):
        if not (WEIGHTS / f"{name}.safetensors").is_file():
            pytest.skip(f"needs {WEIGHTS / name}.safetensors")
    return ShapesNetworks()


def _drawn() -> tuple[list[str], np.ndarray]:
    chosen, pictures = prompts.shapes()
    return [prompt.text for prompt in chosen[:COUNT]], pictures[:COUNT]


def _asked(texts: list[str], pictures: np.ndarray) -> dict[str, tuple]:
    return {
        "features": (pictures,),
        "embeddings": (pictures,),
        "agreement": (pictures, texts),
        "distances": (pictures, pictures[::-1]),
    }


def _noise(images: np.ndarray, strength: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, strength, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def _blur(images: np.ndarray, radius: float) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))) for image in images])


def _jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    def squeeze(image: np.ndarray) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        return np.asarray(Image.open(stream))

    return np.stack([squeeze(image) for image in images])


DAMAGES = {"noise": (_noise, (12, 50, 110)), "blur": (_blur, (1, 3, 7)), "jpeg": (_jpeg, (50, 12, 2))}


def test_identical_sets_on_untrained_networks(untrained_judges: ShapesNetworks) -> None:
    texts, pictures = _drawn()
    ours, logits = untrained_judges.features(pictures)
    assert ours.shape == (COUNT, 64)
    assert logits.shape == (COUNT, 24)
    assert metrics.fid(ours, ours, metrics.resample(COUNT, resamples=5)).value == pytest.approx(0, abs=1e-6)
    assert (untrained_judges.distances(pictures, pictures) == 0).all()
    assert (abs(untrained_judges.agreement(pictures, texts)) <= 1 + 1e-6).all()


def test_the_metrics_are_the_same_in_shards(untrained_judges: ShapesNetworks) -> None:
    """Features of parts, put together, are those of the whole, and so are the scores."""
    texts, pictures = _drawn()
    first = features.BATCH
    whole, parts = (
        untrained_judges.features(pictures),
        [untrained_judges.features(part) for part in (pictures[:first], pictures[first:])],
    )
    for index in range(2):
        np.testing.assert_allclose(np.concatenate([part[index] for part in parts]), whole[index], atol=1e-6)
    merged = np.concatenate([part[0] for part in parts])
    rows = metrics.resample(COUNT, resamples=2)
    for metric in (metrics.fid, metrics.kid):
        assert metric(merged, whole[0][::2], rows).value == pytest.approx(metric(whole[0], whole[0][::2], rows).value)
    agreement = untrained_judges.agreement(pictures, texts)
    halves = [untrained_judges.agreement(pictures[part], texts[part]) for part in (slice(0, first), slice(first, None))]
    np.testing.assert_allclose(np.concatenate(halves), agreement, atol=1e-6)


class Elsewhere(TorchFunctionMode):
    """Stands in for a GPU, which may not be there: counts what is sent to it, and leaves it on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, ...]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to and args[1:2] == (AWAY,):
            self.sent.append(tuple(args[0].shape))
            return args[0]
        return function(*args, **(kwargs or {}))


AWAY = "cuda:1"


@pytest.mark.parametrize("reading", ["features", "embeddings", "agreement", "distances"])
def test_networks_and_pictures_go_to_the_device_batch_by_batch(untrained_judges, monkeypatch, reading) -> None:
    texts, pictures = _drawn()
    asked = _asked(texts, pictures)[reading]
    expected = getattr(untrained_judges, reading)(*asked)
    away: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: away.append(device) or module)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device}")
    judges = ShapesNetworks(untrained_judges.folder, AWAY)
    with Elsewhere() as elsewhere:
        found = getattr(judges, reading)(*asked)
    for ours, theirs in zip(_rows(found), _rows(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)  # under such a mode torch's attention has no fast path
    assert away == [AWAY]
    assert {len_ for len_, *_ in elsewhere.sent} == {features.BATCH, COUNT - features.BATCH}
    assert len(elsewhere.sent) == 2 * len(asked)
    assert judges.made_by(reading) == [*untrained_judges.made_by(reading), f"the GPU {AWAY}"]


def _rows(found) -> tuple[np.ndarray, ...]:
    return found if isinstance(found, tuple) else (found,)


def test_clip_sees_what_was_prepared_on_the_cpu() -> None:
    pictures, tokens = torch.arange(40.0)[:, None], torch.ones(40, 1)
    with Elsewhere() as elsewhere:
        found = features._batched(lambda a, b: (a * b).sum(1), AWAY, pictures, tokens, prepare=lambda a: a.repeat(1, 3))
    np.testing.assert_array_equal(found, 3 * np.arange(40.0))
    assert elsewhere.sent == [(32, 3), (32, 1), (8, 3), (8, 1)]


def test_a_gpu_judges_without_tf32(monkeypatch) -> None:
    before = torch.backends.cudnn.allow_tf32
    with features._in_float32(AWAY):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.enabled
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.gpu
@pytest.mark.parametrize("reading", ["features", "embeddings", "agreement", "distances"])
def test_a_gpu_judges_as_the_cpu_does(gpu, trained, random_inception, shared, reading) -> None:
    """Of the standard networks, those whose weights are at hand; Inception's architecture with any weights."""
    texts, pictures = _drawn()
    asked = _asked(texts, pictures)[reading]
    pairs = [(trained, ShapesNetworks(device=str(gpu)))]
    folder = {"features": random_inception, "distances": shared / "lpips", "agreement": shared / "clip"}.get(reading)
    if folder and folder.is_dir() and any(folder.iterdir()):
        pairs.append((StandardNetworks(folder), StandardNetworks(folder, str(gpu))))
    for judges in pairs:
        expected, found = (getattr(each, reading)(*asked) for each in judges)
        for ours, theirs in zip(_rows(found), _rows(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_images_of_another_size_are_judged_at_the_networks_own(untrained_judges: ShapesNetworks) -> None:
    texts, pictures = _drawn()
    larger = pictures[:4].repeat(2, 1).repeat(2, 2)
    assert untrained_judges.features(larger)[0].shape == (4, 64)
    assert untrained_judges.agreement(larger, texts[:4]).shape == (4,)
    assert untrained_judges.distances(larger, larger).shape == (4,)


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=[pytest.mark.whole] * (name != "noise")) for name in DAMAGES]
)
def test_more_damage_is_worse_in_every_metric(trained: ShapesNetworks, damage: str) -> None:
    """Drawn pictures against themselves with more and more noise, blur or compression."""
    texts, pictures = _drawn()
    spoil, strengths = DAMAGES[damage]
    judge = Judge(pictures, texts, Reference(pictures), trained, counts_objects=True)
    steps = [judge.measure("none", pictures), *(judge.measure("x", spoil(pictures, s)) for s in strengths)]
    values = [{row.metric: row.value for row in step} for step in steps]
    for name in ("fid_shapes", "kid_shapes", "cmmd_shapes", "lpips_shapes"):
        assert [step[name] for step in values] == sorted(step[name] for step in values), name
    for name in ("psnr_db", "ssim"):
        assert [step[name] for step in values] == sorted((step[name] for step in values), reverse=True), name
    for name in ("is_shapes", "clip_shapes", "objects_right"):
        # These judge what is seen, not every pixel: the faintest damage may leave them as they are.
        assert values[-1][name] < values[0][name], name
        assert values[-1][name] <= values[1][name], name


def test_the_drawn_pictures_are_as_good_as_can_be(trained: ShapesNetworks) -> None:
    from optsd.quality.objects import objects_right

    texts, pictures = _drawn()
    assert objects_right(pictures, texts) > 0.95
    wrong = [*texts[1:], texts[0]]
    assert objects_right(pictures, wrong) < 0.3
    assert trained.agreement(pictures, texts).mean() > trained.agreement(pictures, wrong).mean() + 0.2


def test_lpips_gives_its_authors_examples(shared: Path, monkeypatch) -> None:
    folder = shared / "lpips"
    if not (folder / "alexnet_features.safetensors").is_file():
        pytest.skip(f"needs {folder / 'alexnet_features.safetensors'}")
    images = [np.asarray(Image.open(folder / f"ex_{name}.png").convert("RGB"))[None] for name in ("ref", "p0", "p1")]
    networks = StandardNetworks(folder)
    assert networks.distances(images[0], images[1])[0] == pytest.approx(0.7219, abs=1e-4)
    assert networks.distances(images[0], images[2])[0] == pytest.approx(0.1376, abs=1e-4)
    assert networks.distances(images[0], images[0])[0] == 0


def test_photographs_go_through_every_metric_that_lacks_no_weights(shared: Path) -> None:
    folder = shared / "coco" / "val2017"
    names = sorted(file.name for file in folder.glob("*.jpg"))[:24]
    if not names or not (shared / "lpips").is_dir():
        pytest.skip(f"needs {folder} and {shared / 'lpips'}")
    real = reference.read(folder, names, 128, 96)
    assert real.skipped == {}
    photographs = np.stack(list(real.pictures))
    judge = Judge(photographs, names, real, StandardNetworks(shared / "lpips"))
    steps = [judge.measure("x", _noise(photographs, strength)) for strength in (0, 10, 40)]
    for name, order in (("lpips", 1), ("ssim", -1), ("psnr_db", -1)):
        values = [order * row.value for step in steps for row in step if row.metric == name]
        assert values == sorted(values)
        assert len(set(values)) == 3
    missing = {row.metric: row.note for row in steps[1] if row.value is None and not row.metric.endswith("_retention")}
    assert set(missing) == {"fid", "kid", "is", "precision", "recall", "fd_dinov2", "cmmd", "clip"}
    assert "needs weights-inception-2015-12-05-6726825d.pth" in missing["fid"]
    assert "run `optsd coco fetch clip`" in missing["clip"]
    assert "fd_dinov2 needs dinov2_vitl14_pretrain.pth" in missing["fd_dinov2"]
    assert "run `optsd coco fetch clip-large`" in missing["cmmd"]


@pytest.fixture
def random_inception(tmp_path: Path, monkeypatch) -> Path:
    """A file of Inception's layout with random weights, and a pinned hash that is the file's."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        state = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path="x").state_dict()
    return _place(dict(state), tmp_path, monkeypatch)


def _place(content: object, folder: Path, monkeypatch, name: str = "inception") -> Path:
    file = folder / downloads.DOWNLOADS[name].file
    torch.save(content, file)
    genuine = replace(downloads.DOWNLOADS[name], sha256=hashlib.sha256(file.read_bytes()).hexdigest(), instead=None)
    monkeypatch.setitem(downloads.DOWNLOADS, name, genuine)
    return folder


def test_inception_is_loaded_through_the_safe_loader(random_inception: Path) -> None:
    found, logits = StandardNetworks(random_inception).features(_drawn()[1][:3])
    assert found.shape == (3, 2048)
    assert logits.shape == (3, 1008)


def _small_dinov2() -> dict[str, torch.Tensor]:
    """Made up weights of the original's layout for ViT-S/14: its positions are those of 37×37 patches."""
    import timm

    shapes = {k: t.shape for k, t in timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict().items()}
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in sorted({**shapes, "mask_token": (1, 384)}.items()):
        one = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
        found[name] = torch.from_numpy((one + 0.05 * rng.standard_normal(shape, np.float32)).astype(np.float32))
    return found


def test_dinov2_has_the_originals_features(tmp_path: Path, monkeypatch) -> None:
    """Every 96th feature that torch-fidelity's extractor gave with facebookresearch/dinov2 (b8931f7) in it."""
    from optsd.quality import backbones

    pictures = np.random.default_rng(1).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    monkeypatch.setattr(backbones, "dinov2", partial(backbones.dinov2, size="small"))
    judges = StandardNetworks(_place(_small_dinov2(), tmp_path, monkeypatch, "dinov2"))
    expected = [[0.315198, -1.366822, -0.951431, 0.851212], [0.567537, -0.683265, -1.460470, 1.072748]]
    np.testing.assert_allclose(judges.dinov2(pictures)[:, ::96], expected, atol=2e-5)
    assert judges.made_by("dinov2") == ["dinov2", downloads.DOWNLOADS["dinov2"].sha256]
    with pytest.raises(BadInput, match=r"the DINOv2 weights are not whole \(.*blocks.*fetch dinov2"):
        backbones.dinov2({"pos_embed": torch.zeros(1, 1 + 37**2, 384)})


def test_cmmds_embeddings_are_those_of_the_whole_clip(tmp_path: Path, monkeypatch) -> None:
    """A published file has CLIP's text encoder too; transformers prepares and embeds the pictures by its own means."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    from optsd.quality import backbones

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 336, "patch_size": 14, "projection_dim": 24}
    whole = CLIPModel(CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=24)).eval()
    state = {**whole.state_dict(), "vision_model.embeddings.position_ids": torch.arange(577)[None]}
    judges = StandardNetworks(_place(state, tmp_path, monkeypatch, "clip-large"))
    small = partial(backbones.clip_vision, config=whole.config.vision_config)
    monkeypatch.setattr(backbones, "clip_vision", small)

    pictures = _drawn()[1][:3].repeat(4, 1).repeat(6, 2)  # 256×384: its middle is seen
    side = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    prepared = CLIPImageProcessorPil(**side)([Image.fromarray(picture) for picture in pictures], return_tensors="pt")
    with torch.no_grad():
        expected = whole.get_image_features(**prepared).pooler_output
    found = judges.embeddings(pictures)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, torch.nn.functional.normalize(expected, dim=-1), atol=1e-4)
    with pytest.raises(BadInput, match=r"the CLIP weights are not whole \(.*fetch clip-large"):
        small({})


def test_the_pinned_clip_of_cmmd_has_the_published_size() -> None:
    """4 bytes a parameter of CLIP ViT-L/14 at 336 pixels, 427,944,193 with the text encoder, and the file's own."""
    from transformers import CLIPVisionModelWithProjection

    from optsd.quality import backbones

    with torch.device("meta"):
        vision = sum(t.numel() for t in CLIPVisionModelWithProjection(backbones.CLIP_LARGE).parameters())
    text = 49408 * 768 + 77 * 768 + 12 * (4 * (768**2 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768) + 2 * 768
    assert vision == 304_293_888
    beside = downloads.DOWNLOADS["clip-large"].size_bytes - 4 * (vision + text + 768**2 + 1)
    assert 0 < beside < 2**20


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_code_in_a_weight_file_is_never_run(tmp_path: Path, monkeypatch) -> None:
    """Not even in a file whose hash is the pinned one."""
    monkeypatch.chdir(tmp_path)
    for name, reading in (("inception", "features"), ("dinov2", "dinov2"), ("clip-large", "embeddings")):
        networks = StandardNetworks(_place({"weight": _Evil()}, tmp_path, monkeypatch, name))
        with pytest.raises(BadInput, match="holds more than tensors"):
            getattr(networks, reading)(_drawn()[1][:2])
    assert not (tmp_path / "unpickled").exists()


def test_missing_and_wrong_shipped_weights_are_named(tmp_path: Path) -> None:
    networks = ShapesNetworks(tmp_path)
    with pytest.raises(NotFound, match=r"classifier.safetensors is missing; make it with"):
        networks.features(_drawn()[1][:2])
    (tmp_path / "clip.safetensors").write_bytes(b"too short")
    with pytest.raises(BadInput, match=r"clip.safetensors does not fit"):
        networks.agreement(_drawn()[1][:2], ["a", "b"])


class _Images(torch.utils.data.Dataset):
    def __init__(self, images: np.ndarray) -> None:
        self.images = features._to_tensor(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_the_shapes_extractor_is_torch_fidelitys(untrained_judges: ShapesNetworks, tmp_path: Path) -> None:
    """`torch_fidelity.calculate_metrics`, given the registered extractor, says what we say."""
    import torch_fidelity

    _, pictures = _drawn()
    ours, theirs = pictures[: COUNT // 2], pictures[COUNT // 2 :]
    found = torch_fidelity.calculate_metrics(
        input1=_Images(ours),
        input2=_Images(theirs),
        feature_extractor="optsd-shapes",
        feature_extractor_weights_path=str(untrained_judges.folder / "classifier.safetensors"),
        cuda=False,
        fid=True,
        isc=True,
        isc_splits=1,
        batch_size=features.BATCH,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    rows = metrics.resample(len(ours), resamples=2)
    left, right = untrained_judges.features(ours), untrained_judges.features(theirs)
    assert metrics.fid(left[0], right[0], rows).value == pytest.approx(
        found["frechet_inception_distance"], rel=1e-4, abs=1e-6
    )
    assert metrics.inception_score(left[1], rows).value == pytest.approx(found["inception_score_mean"])

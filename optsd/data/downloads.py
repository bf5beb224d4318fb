"""The files that cannot be shipped: what they are, their pinned hashes, and where they are looked for.

Nothing is downloaded in the middle of a run: `optsd coco fetch` does it, and a run takes what it finds.
"""

import hashlib
import os
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from optsd.errors import BadInput, NotFound
from optsd.files import home, write_atomically

TIMEOUT_S = 30


@dataclass(frozen=True)
class Download:
    """A file with a fixed content. `caches` are other programs' caches where it may lie already; `instead` is a file
    that serves as well, with its hash."""

    name: str
    file: str
    url: str
    sha256: str
    size_bytes: int
    purpose: str
    licence: str
    caches: tuple[str, ...] = ()
    instead: tuple[str, str] | None = None


_TORCH_CACHE = "{torch}/hub/checkpoints"
_CLIP_REVISION = "a6f597a30f7b82c51704746581f9a4e41421e878"
_CLIP_LARGE_REVISION = "ce19dc912ca5cd21c8a653c79e251e808ccabcd1"
_CLIP_LARGE = "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801"

DOWNLOADS = {
    download.name: download
    for download in (
        Download(
            "captions",
            "annotations_trainval2017.zip",
            "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
            "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            252_907_541,
            "the standard prompts",
            "CC BY 4.0",
        ),
        Download(
            "images",
            "val2017.zip",
            "http://images.cocodataset.org/zips/val2017.zip",
            "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            815_585_330,
            "the photographs that fid and kid compare with",
            "each photograph its own, see COCO's annotations",
        ),
        Download(
            "inception",
            "weights-inception-2015-12-05-6726825d.pth",
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            95_628_359,
            "fid, kid, is, precision, recall",
            "Apache-2.0",
            (_TORCH_CACHE,),
        ),
        Download(
            "alexnet",
            "alexnet-owt-7be5be79.pth",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            244_408_911,
            "lpips",
            "BSD-3-Clause",
            (_TORCH_CACHE,),
            # Its convolutions alone, all that LPIPS uses, under the same names.
            ("alexnet_features.safetensors", "9f97fd313f4da83dbe6bbfbe6effca1241de9edfcd7c53386261ed9697286dd9"),
        ),
        Download(
            "clip",
            "open_clip_model.safetensors",
            f"https://huggingface.co/timm/vit_base_patch32_clip_224.openai/resolve/{_CLIP_REVISION}/open_clip_model.safetensors",
            "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
            605_143_284,
            "clip",
            "MIT",
            (f"{{hub}}/models--timm--vit_base_patch32_clip_224.openai/snapshots/{_CLIP_REVISION}",),
        ),
        Download(
            "dinov2",
            "dinov2_vitl14_pretrain.pth",
            "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
            "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
            1_217_586_395,
            "fd_dinov2",
            "Apache-2.0",
            (_TORCH_CACHE,),
        ),
        Download(
            "clip-large",
            "clip-vit-large-patch14-336.bin",
            f"https://huggingface.co/openai/clip-vit-large-patch14-336/resolve/{_CLIP_LARGE_REVISION}/pytorch_model.bin",
            _CLIP_LARGE,
            1_711_974_081,
            "cmmd",
            "MIT",
            (f"{{hub}}/models--openai--clip-vit-large-patch14-336/snapshots/{_CLIP_LARGE_REVISION}",),
            ("pytorch_model.bin", _CLIP_LARGE),  # its name in that cache
        ),
    )
}
CAPTIONS = "annotations/captions_val2017.json"
PHOTOGRAPHS = "val2017"


def coco_folder() -> Path:
    """Where COCO lies: `annotations/captions_val2017.json` and `val2017/*.jpg`, as its archives unpack."""
    return home() / "coco"


def weights_folder() -> Path:
    return home() / "weights"


def fetch(name: str) -> Path:
    """Download what is missing (resumed, hashed, with a progress bar) and unpack it; where it lies then.

    Raises BadInput for an unknown name, NotFound when it cannot be downloaded or has another hash.
    """
    if name not in DOWNLOADS:
        raise BadInput(f"no download {name!r}", f"choose from {', '.join(DOWNLOADS)}")
    download = DOWNLOADS[name]
    if name == "captions":
        return _unpack(_retrieve(download, coco_folder()), coco_folder(), [CAPTIONS])[0]
    if name == "images":
        archive = _retrieve(download, coco_folder())
        _unpack(archive, coco_folder(), None)
        return coco_folder() / PHOTOGRAPHS
    return _retrieve(download, weights_folder())


def find_weights(name: str, configured: Path | None = None) -> Path:
    """The whole, genuine file of a metric's weights: in a configured folder, optsd's own, or another program's cache.

    Raises NotFound, which says which file is wanted and how to get it, and BadInput for a file of that name with
    another content.
    """
    download = DOWNLOADS[name]
    folders = [configured] if configured else []
    folders += [weights_folder(), *(Path(_expand(cache)) for cache in download.caches)]
    accepted = dict([(download.file, download.sha256), *([download.instead] if download.instead else [])])
    candidates = (folder / name for folder in folders for name in accepted)
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise NotFound(
            f"{download.purpose} needs {download.file}, which is not in {folders[0]}",
            f"run `optsd coco fetch {name}`, or put the file there ({download.url})",
        )
    if sha256_of(file) != accepted[file.name]:
        raise BadInput(f"{file} is not the published {file.name}: its SHA-256 differs", "delete and fetch it again")
    return file


def check_hub(hub_id: str) -> None:
    """Raises NotFound where a model is neither in the hub's cache nor to be had from the hub now."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(hub_id, "model_index.json"), str):
        return
    try:
        HfApi().model_info(hub_id, timeout=TIMEOUT_S)
    except Exception as error:  # no network, no such model, no leave: its HTTP library's errors share no other class
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0][:120]
        raise NotFound(
            f"{hub_id} is not on this machine, and the hub does not give it ({reason})",
            "download it where there is a network, and give its folder: --model FOLDER",
        ) from error


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes; read once as long as the file stays as it is."""
    status = file.stat()
    return _sha256(file, status.st_size, status.st_mtime_ns)


@cache
def _sha256(file: Path, size_bytes: int, modified_ns: int) -> str:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _retrieve(download: Download, folder: Path) -> Path:
    import pooch
    import requests

    file = folder / download.file
    try:
        return Path(
            pooch.retrieve(
                download.url,
                known_hash=f"sha256:{download.sha256}",
                fname=download.file,
                path=folder,
                downloader=_Resuming(folder / f"{download.file}.part"),
            )
        )
    except (requests.RequestException, OSError) as error:
        raise NotFound(
            f"cannot download {download.url} ({type(error).__name__})",
            f"run the command again to go on, or put the file at {file} by hand",
        ) from error
    except ValueError as error:
        raise NotFound(
            f"{download.url} gave another content than the pinned one", f"put the genuine file at {file}"
        ) from error


class _Resuming:
    """A downloader for pooch that goes on from the bytes which an interrupted try has left in `partial`."""

    def __init__(self, partial: Path) -> None:
        self.partial = partial

    def __call__(self, url: str, output_file: str, pooch_object) -> None:
        import requests
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        have = self.partial.stat().st_size if self.partial.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
            complete = have and answer.status_code == 416  # there is nothing after the bytes that we have
            if not complete:
                answer.raise_for_status()
                resumed = answer.status_code == 206  # a server that knows no ranges sends all of it, with a 200
                first = have if resumed else 0
                columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
                with self.partial.open("ab" if resumed else "wb") as stream, Progress(*columns) as progress:
                    total = first + int(answer.headers.get("content-length", 0))
                    task = progress.add_task("", total=total or None, completed=first)
                    for block in answer.iter_content(2**18):
                        stream.write(block)
                        progress.advance(task, len(block))
        self.partial.replace(output_file)


def _unpack(archive: Path, folder: Path, members: list[str] | None) -> list[Path]:
    """Files of a zip archive, each written atomically; all `val2017/*.jpg` where no members are named."""
    with zipfile.ZipFile(archive) as packed:
        # The archive's hash is pinned, and still no name from it is trusted to stay inside the folder.
        names = members or [
            name for name in packed.namelist() if name.startswith(f"{PHOTOGRAPHS}/") and name.count("/") == 1
        ]
        names = [name for name in names if not name.endswith("/") and ".." not in name]
        for name in names:
            if not (folder / name).exists():
                write_atomically(folder / name, packed.read(name))
    return [folder / name for name in names]


def _expand(folder: str) -> str:
    # of a user without a home directory there are no caches: what is looked for there is not found
    cache_home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    hugging_face = os.environ.get("HF_HOME") or f"{cache_home}/huggingface"
    return folder.format(
        torch=os.environ.get("TORCH_HOME") or f"{cache_home}/torch",
        hub=os.environ.get("HF_HUB_CACHE") or f"{hugging_face}/hub",
    )

"""`optsd coco fetch|verify|prompts`: the files behind the standard prompts and the standard metrics."""

import argparse
from collections import Counter
from functools import partial
from pathlib import Path

from rich.console import Console

from optsd.data import captions, downloads, prompts, sets
from optsd.errors import BadInput, NotFound
from optsd.models.shapes import PIPELINES

_EXAMPLES = """\
examples:
  optsd coco fetch captions           the caption file that the prompts are made from (253 MB)
  optsd coco fetch images             the photographs that fid and kid compare with (816 MB)
  optsd coco fetch inception alexnet clip
                                      the networks of fid, kid and is, of lpips, of clip (1 GB)
  optsd coco fetch dinov2 clip-large  those of fd_dinov2 and cmmd (3 GB)
  optsd coco verify                   is everything there, whole and genuine?
  optsd coco prompts --count 3        print prompts
  optsd coco prompts --prompts parti  those of another set
  optsd coco prompts --model shapes   those of the shipped model
  optsd coco verify --captions FILE   check a caption file that lies elsewhere

Files are kept under $OPTSD_HOME (default: ~/.cache/optsd). On a machine without a network, copy them there.
"""


def main(arguments: list[str]) -> int:
    """The command line. Returns the exit status; raises OptsdError for what the user can put right."""
    parser = argparse.ArgumentParser(
        prog="optsd coco", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("fetch", help="download files, with resume and pinned hashes")
    fetch.add_argument("names", nargs="*", default=["captions"], help=f"{', '.join(downloads.DOWNLOADS)}, or all")
    verify = commands.add_parser("verify", help="check the caption file, the prompts made from it, and all downloads")
    show = commands.add_parser("prompts", help="print the standard prompts, one a line")
    show.add_argument("--count", type=int, default=prompts.COUNT, metavar="N", help="the first N (default: 1,000)")
    show.add_argument(
        "--prompts", default="standard", metavar="SET", help=f"{', '.join(sets.SETS)} (default: %(default)s)"
    )
    show.add_argument("--model", choices=("coco", *PIPELINES), default="coco", help="whose prompts (default: coco)")
    for command in (verify, show):
        command.add_argument(
            "--captions", type=Path, metavar="FILE", help="the set's file (captions_val2017.json), if it lies elsewhere"
        )
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    if options.command == "fetch":
        return _fetch(options.names, console)
    file = options.captions or downloads.coco_folder() / downloads.CAPTIONS
    if options.command == "verify":
        return _verify(file, console)
    if options.count < 1:
        raise BadInput(f"--count {options.count} asks for no prompt", "give 1 or more")
    own = sets.find(options.prompts)
    if options.model in PIPELINES:
        chosen = list(prompts.shapes()[0])
    else:
        chosen = own.read(options.captions) if options.captions else own.prompts(downloads.coco_folder())
    for prompt in chosen[: options.count]:
        console.print(prompt.text, markup=False)
    return 0


def _fetch(names: list[str], console: Console) -> int:
    for name in downloads.DOWNLOADS if names == ["all"] else names:
        console.print(f"{name}: {downloads.fetch(name)}", markup=False)
    return 0


def _verify(file: Path, console: Console) -> int:
    """Says of each file what it is for and whether it is there, whole and genuine; 1 unless all of them are."""
    checks = {"captions": lambda: _captions(file), "images": _photographs}
    checks |= {name: partial(_weights, name) for name in downloads.DOWNLOADS if name not in checks}
    status = 0
    for name, check in checks.items():
        try:
            said = check()
        except BadInput as error:
            said, status = str(error), 1
        console.print(f"{name}: {said}", markup=False)
    return status


def _captions(file: Path) -> str:
    made = prompts.coco(file)
    skipped: Counter[str] = prompts.choose(captions.read(file))[1]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
    return f"{file}: genuine; {len(made):,} prompts, SHA-256 {prompts.digest(made)}; captions that make none: {reasons}"


def _photographs() -> str:
    folder = downloads.coco_folder() / downloads.PHOTOGRAPHS
    chosen = prompts.shipped_manifest().choices
    have = sum((folder / f"{choice.image_id:012}.jpg").is_file() for choice in chosen)
    said = f"{have:,} of the {len(chosen):,} prompts' photographs in {folder}"
    if have < len(chosen):
        raise NotFound(said, "run `optsd coco fetch images`")
    return said


def _weights(name: str) -> str:
    return f"{downloads.find_weights(name)}: genuine"

"""Tokenizers for models without files: CLIP's byte-level BPE with a few whole words, and T5's with single letters."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, T5Tokenizer

_START, _END = "<|startoftext|>", "<|endoftext|>"


def byte_level_tokenizer(folder: Path, words: Iterable[str], length: int) -> "CLIPTokenizer":
    """A CLIPTokenizer of 514 tokens and those of the words. `length`: tokens in a prompt, start and end included.

    Writes `vocab.json` and `merges.txt` into `folder` and loads them as a user would.
    """
    from transformers import CLIPTokenizer

    symbols = _byte_symbols()
    vocabulary = symbols + [symbol + "</w>" for symbol in symbols]
    merges: list[str] = []
    for word in sorted(words):
        left = word[0]
        for i, letter in enumerate(word[1:], start=1):
            right = letter + "</w>" if i == len(word) - 1 else letter
            if left + right not in vocabulary:
                merges.append(f"{left} {right}")
                vocabulary.append(left + right)
            left += right
    vocabulary += [_START, _END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("".join(f"{line}\n" for line in ["#version: 0.2", *merges]))
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=length,
        pad_token=_END,
    )


def t5_tokenizer(length: int) -> "T5Tokenizer":
    """A T5Tokenizer of printable ASCII letters, one token each. `length`: tokens in a prompt, the end included."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(code), -3.0) for code in range(ord("!"), ord("~") + 1)]
    return T5Tokenizer(vocab=special + letters, extra_ids=0, model_max_length=length)


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order (Radford et al., 2019)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]

"""Encode Python's sources for ``long_run``, and compress them by simple means for comparison."""

from __future__ import annotations

import bz2
import lzma
import pathlib
from typing import Any

import numpy as np

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # a code each, and one for all others
CODES = len(CHARACTERS) + 1
CONTEXT = 64  # characters


def encode(text: str) -> np.ndarray:
    """Return the codes of characters, uint8."""
    table = np.full(128, CODES - 1, np.uint8)
    table[[ord(character) for character in CHARACTERS]] = range(len(CHARACTERS))
    return table[np.minimum(np.frombuffer(text.encode("utf-32-le"), "<u4"), 127)]


def decode(codes: Any) -> str:
    """Return the text of codes, with a question mark for characters without their own."""
    return "".join((CHARACTERS + "?")[code] for code in np.asarray(codes))


def write_texts(out: pathlib.Path, library: pathlib.Path) -> None:
    """Write a folder's modules as codes to two files, one for the held-out tenth by name."""
    files = [path.read_text("utf-8", "replace") for path in sorted(library.glob("*.py"))]
    ends = np.cumsum([0, *map(len, files)])
    cut = int(np.searchsorted(ends, 0.9 * ends[-1], side="right")) - 1
    if ends[cut] <= CONTEXT:
        raise ValueError(f"{library} has too little text: give a folder of more .py files.")
    for name, part in ("held_out", files[cut:]), ("train", files[:cut]):
        encode("".join(part)).tofile(out / f"{name}.bin")


def texts(out: pathlib.Path) -> list[np.ndarray]:
    """Return the codes to train on and those held out, mapped from disk."""
    return [np.memmap(out / f"{name}.bin", np.uint8, "r") for name in ("train", "held_out")]


def ngram_bits(train: np.ndarray, held: np.ndarray, order: int) -> float:
    """Return bits per character of held-out text, predicted by add-one counts of the other text."""

    def numbers(text):
        padded = np.concatenate([np.zeros(order, int), text])
        return sum(padded[n : n + len(text)] * CODES ** (order - n) for n in range(order + 1))

    counts = 1 + np.bincount(numbers(train), minlength=CODES ** (order + 1)).reshape(-1, CODES)
    likely = counts / counts.sum(axis=1, keepdims=True)
    return float(-np.mean(np.log2(likely.ravel()[numbers(held)])))


def references(train: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """Return bits per character of the held-out text by simpler means."""
    code = held.tobytes()
    return {
        "uniform": float(np.log2(CODES)),
        "single characters": ngram_bits(train, held, 0),
        "after two characters": ngram_bits(train, held, 2),
        "xz -9": 8 * len(lzma.compress(code, preset=9)) / len(code),
        "bzip2 -9": 8 * len(bz2.compress(code, 9)) / len(code),
    }

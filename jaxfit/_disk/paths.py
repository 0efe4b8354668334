"""The path of a run's directory, and the folders of its chunks."""

from __future__ import annotations

import os
import pathlib
import re

from jaxfit import _check
from jaxfit._disk.files import StoredChunk

CHUNK = re.compile("[0-9]{10}-[0-9]{10}")


def checked_path(checkpoint_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Return the absolute path of a directory, which need not exist yet.

    Raises:
      TypeError, ValueError: if it cannot be that of a directory.
    """
    if not isinstance(checkpoint_dir, str | os.PathLike):
        raise TypeError(
            f"checkpoint_dir is {_check.show(checkpoint_dir)}, but must be the path of a directory."
        )
    if checkpoint_dir == "":
        raise ValueError(
            'checkpoint_dir is "", but must be the path of a directory: give "." for this one.'
        )
    try:
        path = pathlib.Path(checkpoint_dir).expanduser().absolute()
    except RuntimeError:
        raise ValueError(
            f"checkpoint_dir is {_check.show(checkpoint_dir)}, but there is no such home "
            f"directory: give another."
        ) from None
    if path.exists() and not path.is_dir():
        raise ValueError(f"checkpoint_dir is {path}, which is a file: give a directory.")
    return path


def list_chunks(path: pathlib.Path, first: int) -> list[StoredChunk]:
    """Return the committed chunks of a directory, whose run began at a step.

    Raises:
      ValueError: if they do not follow one another.
    """
    names = sorted(entry.name for entry in path.iterdir() if CHUNK.fullmatch(entry.name))
    chunks = [StoredChunk(path / name, *map(int, name.split("-"))) for name in names]
    expected = first
    for chunk in chunks:
        if not expected == chunk.start <= chunk.stop:
            raise ValueError(
                f"{path} has the steps up to {expected}, and then {chunk.path.name}: put back what "
                f"is missing, or remove that folder and all after it, and the run ends there."
            )
        expected = chunk.stop
    return chunks

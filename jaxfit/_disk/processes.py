"""Processes that use one directory: only one run can write, and its processes fail together."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import IO

import jax
import numpy as np
from jax.experimental import multihost_utils


def lock(path: pathlib.Path, writer: str = "fit") -> IO[str]:
    """Lock a directory: nobody else can write to it while the returned file is open."""
    import fcntl  # not on Windows, where Orbax does not run either

    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / "lock").open("a")
    except OSError as error:
        raise type(error)(
            f"{path} cannot be written ({error.strerror}): give another checkpoint_dir"
            + ("; what is there is read with jaxfit.load." if writer == "fit" else ".")
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise RuntimeError(
            f"{path} is being written by another {writer}: wait for it, or give another directory."
        ) from None
    return file


@contextlib.contextmanager
def raise_in_all_processes() -> Iterator[None]:
    """If one process raises here, raise in all of them."""
    error: BaseException | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if jax.process_count() > 1:
        try:
            failed = multihost_utils.process_allgather(np.int32(error is not None))
        except Exception as lost:
            raise error or RuntimeError(
                "another process has ended before its time: start all processes again, and they go "
                "on from what is committed."
            ) from lost
        if error is None and np.any(failed):
            error = RuntimeError("another process could not use checkpoint_dir, and says why.")
    if error is not None:
        raise error

"""Read a run that ``jaxfit.fit(…, checkpoint_dir=…)`` has written."""

from __future__ import annotations

import os
from typing import Any

import jax

from jaxfit import _check, _tree
from jaxfit._disk import files, spec
from jaxfit._disk.assemble import assemble
from jaxfit._disk.manifest import read_manifest
from jaxfit._disk.paths import checked_path, list_chunks
from jaxfit._types import PyTree
from jaxfit.run import Run, State

__all__ = ["load"]


def load(checkpoint_dir: str | os.PathLike[str], like: Any = None) -> Run:
    """Read the run that ``jaxfit.fit(…, checkpoint_dir=…)`` left, finished or not.

    Args:
      checkpoint_dir: the directory.
      like: what says how nodes of other types than Python's containers are to come back: parameters
        like those of the run, such as an Equinox or NNX model; a `State` like one of the run, as
        ``jaxfit.init`` makes it; or a function without arguments that returns one of these, of
        which only shapes are computed. Its values are not used, but for leaves that are not arrays.

    Returns:
      A `Run`. The arrays ``[rows, …]`` of its trajectory are read from disk when they are indexed,
      row first, or whole by ``np.asarray``. The end of every chunk is a keyframe, so that `replay`
      and `at` work on it, outside ``jax.jit`` or with the run closed over.

      Dicts, lists, tuples and named tuples come back as they were. Without ``like``, nodes of other
      types, such as Equinox modules, come back as dicts of their children, and functions as their
      names, because nothing in the directory is executed. `fit`, called again with the arguments of
      a finished run, returns it at once with all types as they were.

      ``jax.tree.map(lambda leaf: leaf[:], run.keyframes)`` reads all keyframes into one State.

    Raises:
      ImportError: without the extra ``checkpoint``.
      FileNotFoundError: if there is no run.
      ValueError: if ``like`` has other parameters than the run; if the directory is in the format
        of another version of jaxfit; or if a file is damaged, now or when its rows are read: the
        message names the folder to remove, so that the run ends before it.

    >>> import tempfile, jax.numpy as jnp, optax, jaxfit
    >>> loss, adam = lambda a: jnp.sum((a - 1.0) ** 4), optax.adam(0.1)
    >>> folder = tempfile.mkdtemp()
    >>> run = jaxfit.fit(loss, jnp.zeros(3), adam, 1000, checkpoint_dir=folder, chunk_size=100)
    >>> loaded = jaxfit.load(folder)
    >>> loaded.trajectory["params"]
    Rows of float32[1000, 3] on disk (read by np.asarray)
    >>> part = jaxfit.replay(loss, loaded, adam, 437, 441, record=lambda s: (s.loss, s.grads))
    >>> (part.trajectory[0] == loaded.trajectory["loss"][437:441]).all()
    Array(True, dtype=bool)
    """
    path = checked_path(checkpoint_dir)
    if not (path / "run.json").is_file():
        raise FileNotFoundError(f"{path} holds no run: give the checkpoint_dir of a fit.")
    known = [] if like is None else _trees_like(like)
    manifest, state, row, evaluation = read_manifest(
        path, [(spec.encode(tree), tree) for tree in known]
    )
    if known and state.params is not known[0]:
        raise ValueError(
            f"like has the parameters {_check.shapes(known[0])}, but those of the run in {path} "
            f"are {_check.shapes(state.params)}: give a model like the one that was trained."
        )
    chunks = list_chunks(path, manifest["first"])
    if not chunks:
        raise FileNotFoundError(
            f"the run in {path} ended before its first chunk was committed: call fit again."
        )
    end = files.restore_tree(chunks[-1], "state", state)
    return assemble(path, manifest, chunks, end, state, row, evaluation)


def _trees_like(like: Any) -> list[PyTree]:
    """Return what may stand in a run whose types are to come back, the parameters first.

    The trees have ShapeDtypeStructs for arrays, and no keys.
    """
    is_function = callable(like) and jax.tree_util.all_leaves([like])

    def trees() -> list[PyTree]:
        made = like() if is_function else like
        is_state = isinstance(made, State)
        params = _tree.as_arrays(made.params if is_state else made)
        parts = [params, _tree.partition(params)[0]]
        parts += [made.carry, made.opt_state] if is_state else []
        return [_tree.hold(_tree.without_keys(part)) for part in parts]

    return [_tree.unpack(tree) for tree in jax.eval_shape(trees)]

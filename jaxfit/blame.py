"""Find the operation of a step that first made an infinity or a NaN, and its line of code."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core, source_info_util
from jax.extend.core import primitives

from jaxfit import _check, _jit
from jaxfit._origins import Origin, Path, follow, kind_of
from jaxfit._primitives import short_dot_p
from jaxfit._problem import Problem, as_data
from jaxfit._step import in_arrays, stepper
from jaxfit._types import Batch, Data, Loss, Optimizer, PyTree
from jaxfit.run import State, Step

# The fields of a Step that it computes, and those that it is given, in the order of the search.
_COMPUTED = ("loss", "grads", "updates", "next carry")
_GIVEN = ("batch", "params", "opt_state", "carry")


class Blame(NamedTuple):
    """What went wrong in a step; ``str`` makes a sentence of it.

    Attributes:
      step: the step, counted from 0.
      leaf: the first leaf that is not finite, in the order loss, gradient, update, the carry after
        the step: ``"loss"``, ``"grads['w']"``, ``"updates[0]"``, ``"next carry['mean']"``. If that
        comes from a leaf that the step was given, it is this one: ``"batch[0]"``,
        ``"params['w']"``, ``"opt_state[0].mu['w']"``, ``"carry['mean']"``. None if all are finite.
      value: what the leaf holds: ``"nan"``, ``"inf"`` or ``"-inf"``.
      primitive: the JAX primitive that the leaf's infinities and NaNs come from, the first to make
        such numbers: ``"log"``, ``"div"``. None if they were there before the step, in what it was
        given or in an array that the loss closes over.
      where: the innermost line of your code that the primitive comes from,
        ``"train.py:12 (loss)"``; for a primitive of the derivative, the line that was
        differentiated. The innermost line of a library with its path,
        ``"optax/_src/transform.py:90 (update_fn)"``, if the primitive comes from no line of yours.
        None if no line is known, or there is no primitive.
      made: what the primitive made: ``"nan"``, ``"inf"`` or ``"-inf"``.
      of: what it was made of: ``"finite numbers"``; or ``"constant infinities"``, which may be
        intended, while a NaN made of them is not.
    """

    step: int
    leaf: str | None = None
    value: str | None = None
    primitive: str | None = None
    where: str | None = None
    made: str | None = None
    of: str | None = None

    def __str__(self) -> str:
        if self.leaf is None:
            return (
                f"step {self.step}: loss, gradient and update are finite when computed operation "
                f"by operation; the compiled step may have been rounded differently."
            )
        subject = "the loss is" if self.leaf == "loss" else f"{self.leaf} holds"
        found = f"step {self.step}: {subject} {self.value}"
        if self.primitive is not None:
            at = f"{self.primitive} at {self.where}" if self.where else self.primitive
            return f"{found}; {at} was the first to make {self.made} of {self.of}."
        if self.leaf.startswith(_GIVEN):
            return f"{found} before anything is computed."
        return f"{found}, which comes from a constant that is not finite."


def blame(
    loss: Loss, state: State, optimizer: Optimizer, *, data: Data = None, has_aux: bool = False
) -> Blame:
    """Find what first made an infinity or a NaN in the step after a state.

    The step is taken again, operation by operation. The first leaf of loss, gradient, update and
    the carry after it that is not finite is followed back through numbers that are not finite to
    the operation that made them of finite ones. An intended infinity, as in a mask of ``-jnp.inf``,
    is not blamed; nor is a number that is never used, such as one that a ``jnp.where`` leaves out.

    Every operation runs on its own, which takes some seconds for a large model. A loop whose result
    is not finite is run again, one iteration at a time.

    Args:
      loss: the loss of the run.
      state: the `State` before the step: ``run.state`` of a run that ``jaxfit.stop.not_finite``
        ended, or of ``jaxfit.replay(…, step, step)``.
      optimizer: the optimizer of the run.
      data: the data of the run.
      has_aux: as in `train`.

    Returns:
      A `Blame`. Its ``leaf`` is None if nothing is infinite or NaN. That can happen even if the
      step of the run went bad: XLA compiles a step as a whole, and can round it differently.

    Raises:
      TypeError, ValueError: if ``state`` is not a `State`, holds the states of many runs or is
        traced; and as `train` does, if the arguments do not fit together.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> loss = lambda a: jnp.sum(jnp.log(a))
    >>> start, sgd = jnp.array([1.0, 3.0]), optax.sgd(0.7)
    >>> run = jaxfit.fit(loss, start, sgd, 100, stop=jaxfit.stop.not_finite, progress=False)
    >>> run.stop_reason
    'not_finite was true at step 2'
    >>> blame = jaxfit.blame(loss, run.state, sgd)
    >>> blame.leaf, blame.primitive, blame.made
    ('loss', 'log', 'nan')
    """
    _check.kind("state", state, State, "run.state")
    _check.concrete("state or data", (state, data), "blame")
    if jnp.ndim(state.step):
        raise ValueError(
            f"state holds states of shape {jnp.shape(state.step)}, but one is examined at a time: "
            f"pick one with jax.tree.map(lambda leaf: leaf[0], run.state)."
        )
    state, fixed = in_arrays(state), None if callable(data) else as_data(data)

    def take_step(state: State, fixed: Batch) -> _Taken:
        problem = Problem(loss, optimizer, data if callable(data) else fixed, has_aux)
        run = stepper(problem, state)
        after, info = run.take(run.state)
        return _Taken(run.step_of(run.state, info), after.carry)

    leaves = _nonfinite_leaves(take_step, state, fixed)
    computed = [leaf for field in _COMPUTED for leaf in leaves if leaf.field == field]
    # An infinity that is only carried on, such as that of a best loss at the start, is meant.
    computed = [leaf for leaf in computed if leaf.field != "next carry" or leaf.origin.path]
    if not computed:
        return Blame(int(state.step))
    origin = computed[0].origin
    given = [leaf for field in _GIVEN for leaf in leaves if leaf.field == field]
    leaf = next((leaf for leaf in given if leaf.origin == origin), computed[0])
    primitive = _primitive_name(origin.path[0]) if origin.path else None
    where = _line_of(origin.path)
    value = kind_of(leaf.array)
    return Blame(int(state.step), leaf.name, value, primitive, where, origin.made, origin.of)


class _Taken(NamedTuple):
    """A step, and the carry that it hands to the next."""

    step: Step
    carry: PyTree


class _Leaf(NamedTuple):
    """A leaf of a Step that is not finite."""

    field: str  # of the Step
    name: str
    array: jax.Array
    origin: Origin


def _nonfinite_leaves(take_step: Callable[..., _Taken], *args: PyTree) -> list[_Leaf]:
    """Take a step operation by operation, and return what is not finite in it."""
    traced = _jit.jit(take_step).trace(*args)
    arrays = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array)]
    values = follow(traced.jaxpr, arrays)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(traced.out_info)]
    return [
        _Leaf(*_names(path), value.array, value.origin)
        for path, value in zip(paths, values, strict=True)
        if value.origin is not None and value.is_nonfinite
    ]


def _names(path: tuple[Any, ...]) -> tuple[str, str]:
    """Return the field that a leaf of `_Taken` is of, and the name of the leaf."""
    if path[0].name == "step":
        return path[1].name, jax.tree_util.keystr(path[1:]).removeprefix(".")
    return "next carry", f"next carry{jax.tree_util.keystr(path[1:])}"


def _primitive_name(equation: core.JaxprEqn) -> str:
    """Return JAX's name of a primitive; a step has its own for short dot products."""
    primitive = equation.primitive
    return (primitives.dot_general_p if primitive is short_dot_p else primitive).name


_FRAME = re.compile(r"^(.*?):(\d+)(?::\d+)? \((.*)\)$", re.MULTILINE)
_THIS_FILE = os.path.abspath(__file__)
_JAXFIT = os.path.dirname(_THIS_FILE) + os.sep
_SITE_PACKAGES = os.sep + "site-packages" + os.sep


def _line_of(path: Path) -> str | None:
    """Return the innermost line of the user's code that a path comes from, or a library's.

    JAX keeps only the frames inside the function that it traced, so the lines that led to the call
    of `blame` are not among them.
    """
    library_line = None
    for equation in path:
        summary = source_info_util.summarize(equation.source_info, num_frames=1000)
        for file, number, function in reversed(_FRAME.findall(summary)):
            line = f"{number} ({function.rpartition('<locals>.')[2]})"
            library_file = _file_in_library(file)
            if library_file is None:
                return f"{os.path.basename(file)}:{line}"
            # The lines that take the step enclose every operation and say nothing about one.
            takes_step = file == _THIS_FILE or library_file.startswith("jaxfit/_")
            if library_line is None and not takes_step:
                library_line = f"{library_file}:{line}"
    return library_line


def _file_in_library(file: str) -> str | None:
    """Return a library's file from the name of the package on; None for a file of the user's."""
    if file.startswith(_JAXFIT):
        return "jaxfit/" + file.removeprefix(_JAXFIT)
    _, found, name = file.rpartition(_SITE_PACKAGES)
    return name if found else None

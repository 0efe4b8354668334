"""A loss at one point, as a function of one real vector: what every analysis works on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _problem, _step, _tree
from jaxfit._types import Batch, Loss, Params, PyTree
from jaxfit.run import Run, State, Step


class Point(NamedTuple):
    """A loss around some parameters, whose P trained numbers are a vector.

    A complex number is two of them, its real and its imaginary part, because the second derivative
    of a real loss is linear over the real numbers only. The vector has the widest of the dtypes of
    the parameters, and at least float32, in which linear algebra works.
    """

    loss: Callable[[jax.Array], jax.Array]  # [P] → []
    at: jax.Array  # [P]
    space: Space

    @property
    def size(self) -> int:
        return self.at.size


class Space(NamedTuple):
    """Trees like the trained leaves of some parameters, as vectors [P] and back."""

    like: PyTree  # shapes and dtypes

    @property
    def dtype(self) -> Any:
        kinds = [jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(self.like)]
        return jnp.result_type(jnp.float32, *kinds)

    def sizes(self) -> list[int]:
        """Return how many numbers of a vector each leaf has."""
        return [
            math.prod(leaf.shape) * (2 if jnp.iscomplexobj(leaf) else 1)
            for leaf in jax.tree.leaves(self.like)
        ]

    def vector(self, tree: PyTree) -> jax.Array:
        """Return a tree as a vector [P]: directions, such as updates or differences."""
        return self._joined(tree, lambda leaf: (leaf.real, leaf.imag))

    def diagonal(self, tree: PyTree) -> jax.Array:
        """Return a tree of real numbers, one for each number that is trained, as a vector [P]."""
        return self._joined(tree, lambda leaf: (leaf.real, leaf.real))

    def tree(self, vector: jax.Array) -> PyTree:
        """Return a vector [P] as a tree of the shapes and dtypes of the parameters."""
        leaves, structure = jax.tree.flatten(self.like)
        parts = jnp.split(vector, np.cumsum(self.sizes())[:-1].tolist())
        return jax.tree.unflatten(structure, list(map(_like, leaves, parts)))

    def _joined(self, tree: PyTree, halves: Callable[[jax.Array], Any]) -> jax.Array:
        leaves, like = jax.tree.leaves(tree), jax.tree.leaves(self.like)
        parts: list[jax.Array] = []
        for leaf, expected in zip(map(jnp.asarray, leaves), like, strict=True):
            parts += halves(leaf) if jnp.iscomplexobj(expected) else (leaf.real,)
        return jnp.concatenate([part.reshape(-1).astype(self.dtype) for part in parts])


def _like(leaf: Any, part: jax.Array) -> jax.Array:
    """Return a part of a vector in the shape and dtype of a leaf."""
    if not jnp.iscomplexobj(leaf):
        return part.reshape(leaf.shape).astype(leaf.dtype)
    half = part.astype(jnp.finfo(leaf.dtype).dtype).reshape(2, *leaf.shape)
    return jax.lax.complex(half[0], half[1])


def space_of(params: Params) -> Space:
    """Return the space of the trained leaves of some parameters."""
    trained, _ = _tree.partition(params)
    return Space(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), trained))


def parts_of(name: str, params: Params | State | Step) -> tuple[Params, Any]:
    """Return parameters as arrays and the carry that belongs to them, which may be None."""
    if isinstance(params, Run):
        raise TypeError(
            f"{name} is a Run, but must be parameters, a State or a Step: give run.state, or the "
            f"rows one by one through jaxfit.analysis.along."
        )
    carry = None
    if isinstance(params, State | Step):
        params, carry = params.params, _tree.as_arrays(params.carry, _tree.is_array)
    return _tree.as_arrays(_step.evaluation_point(params)), carry


def on_data(loss: Loss, data: Batch | None) -> Callable[[Params, Any], Any]:
    """Return a loss as a function of (parameters, carry), whatever it returns.

    Raises:
      TypeError: if data is a function.
    """
    if callable(data):
        raise TypeError(
            f"data is the function {_check.show(data)}, but one point is examined on one batch: "
            f"give that of a step, such as step.batch or data(step), or all arrays."
        )
    batch = () if data is None else (data,)
    return lambda params, carry: loss(params, *(() if carry is None else (carry,)), *batch)


def point_of(
    loss: Loss,
    params: Params | State | Step,
    data: Batch | None = None,
    has_aux: bool = False,
    name: str = "params",
) -> Point:
    """Check a loss and where it is to be examined, and return it as a function of a vector.

    Args:
      loss: the loss, as `jaxfit.train` takes it.
      params: parameters, or a `State` or `Step`, which bring the carry along.
      data: what the loss is given beside them; None if it takes none.
      has_aux: whether the loss returns a pair.
      name: the name of the argument ``params``, for errors.
    """
    params, carry = parts_of(name, params)
    _problem.check_loss(loss, carry is not None, data is not None)
    value = on_data(loss, data)
    trained, rest = _tree.partition(params)
    is_pair, space = has_aux or carry is not None, space_of(params)

    def of_trained(trained: PyTree, *_: Any) -> Any:
        return _tree.pack(value(_tree.combine(trained, rest), carry))

    start = trained, None, jnp.int32(0)
    _problem.check_objective(of_trained, start, carry, has_aux, None)

    def of_vector(vector: jax.Array) -> jax.Array:
        out = of_trained(space.tree(vector))
        return jnp.asarray(out[0] if is_pair else out, space.dtype)

    return Point(of_vector, space.vector(trained), space)


def hessian_of(point: Point) -> Callable[[jax.Array], jax.Array]:
    """Return the product of the loss's second derivative with a vector: [P] → [P].

    Forward over reverse, linearized once for all products.
    """
    try:
        return jax.linearize(jax.grad(point.loss), point.at)[1]
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"the loss has no second derivative that JAX can compute ({_check.reason(error)}): "
            f"write it with functions that can be differentiated twice."
        ) from error

"""Krylov spaces: Lanczos and Arnoldi by matfree, safe where the space is exhausted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxfit import _check

Matvec = Callable[[jax.Array], jax.Array]


def decomp() -> Any:
    """Return ``matfree.decomp``."""
    try:
        from matfree import decomp
    except ImportError as error:
        raise ImportError(
            'eigenvalues need matfree: run pip install "jaxfit-train[analysis]".'
        ) from error
    return decomp


def check_number(size: int, num_matvecs: int | None, least: int = 1) -> None:
    """Check the dimension of a Krylov space."""
    if num_matvecs is None:
        return
    number = _check.count("num_matvecs", num_matvecs)
    if not least <= number <= size:
        raise ValueError(
            f"num_matvecs is {number}, but must be from {least}, the number of eigenvalues, to "
            f"{size}, the number of dimensions: choose one between, or leave it out."
        )


class Ritz(NamedTuple):
    """Eigenvalues of a symmetric matrix as seen in a Krylov space of m dimensions.

    Where the space is exhausted early, the first places hold no eigenvalue.
    """

    values: jax.Array  # [m], ascending; −inf where there is none
    weights: jax.Array  # [m], of Gauss quadrature, of sum 1; 0 where there is no eigenvalue
    vectors: jax.Array  # [m, m], column i are the coefficients of vector i in the basis
    basis: jax.Array  # [m, P], orthonormal rows, or zero


def lanczos(matvec: Matvec, start: jax.Array, num: int) -> Ritz:
    """Return the Ritz values of a symmetric matrix in a Krylov space, by Lanczos's method.

    matfree divides by the length of the next direction. That is zero once the space has all that
    the start is made of, as for a zero matrix; whatever follows is cut off here.
    """
    found = decomp().tridiag_sym(num, custom_vjp=False)(matvec, start)
    matrix = found.J_small
    lengths = jnp.diagonal(matrix, 1)
    alive = jnp.cumprod(lengths > _least(matrix)).astype(bool)
    alive = jnp.append(True, alive)
    matrix = jnp.where(alive[:, None] & alive, matrix, 0)
    # Below all eigenvalues, so that these places come first.
    below = -(4 * jnp.max(jnp.abs(matrix), initial=0) + 1)
    values, vectors = jnp.linalg.eigh(matrix + jnp.diag(jnp.where(alive, 0, below)))
    real = jnp.arange(num) >= jnp.sum(~alive)
    return Ritz(
        jnp.where(real, values, -jnp.inf),
        jnp.where(real, vectors[0] ** 2, 0),
        vectors,
        jnp.where(alive[:, None], found.Q_tall, 0),
    )


def _least(matrix: jax.Array) -> jax.Array:
    """Return the length below which the next direction of a Krylov space is rounding."""
    finite = jnp.where(jnp.isfinite(matrix), jnp.abs(matrix), 0)
    return 10 * jnp.finfo(matrix.dtype).eps * jnp.max(finite)


class Top(NamedTuple):
    """The largest eigenvalues of a symmetric matrix, as far as they were found."""

    values: jax.Array  # [k], largest first; −inf where there is none
    vectors: jax.Array  # [k, P]
    products: jax.Array  # [k, P], matrix times vector
    norm: jax.Array  # [], of the matrix, as far as the first Krylov space has seen it


def top(matvec: Matvec, like: jax.Array, k: int, num: int, key: jax.Array) -> Top:
    """Return the k largest eigenvalues of a symmetric matrix with their multiplicities.

    A Krylov space has one vector of every eigenspace. So after a first, another is built in the
    orthogonal complement of what was found, until it holds nothing that belongs among the first k.

    Args:
      matvec: the matrix times a vector: [P] → [P].
      like: an array of the vectors' shape and dtype.
      k: how many eigenvalues, at most P.
      num: the dimension of each Krylov space, from k to P.
      key: draws the starts.
    """
    tolerance = float(jnp.finfo(like.dtype).eps) ** 0.5

    def more(carry: tuple[jax.Array, Top, jax.Array]) -> tuple[jax.Array, Top, jax.Array]:
        number, known, _ = carry
        found = _candidates(matvec, known, like, num, jax.random.fold_in(key, number))
        merged = _merged(known, found)
        gained = merged.values[-1] - known.values[-1]
        missing = gained > tolerance * jnp.max(jnp.abs(merged.values))
        return number + 1, merged, missing | jnp.isneginf(known.values[-1])

    none = jnp.zeros((k, like.size), like.dtype)
    nothing = Top(jnp.full(k, -jnp.inf, like.dtype), none, none, jnp.zeros((), like.dtype))
    start = jnp.int32(0), nothing, jnp.array(True)
    if k == 1:
        return more(start)[1]

    def is_incomplete(carry: tuple[jax.Array, Top, jax.Array]) -> jax.Array:
        number, known, missing = carry
        has_all = (k == like.size) & jnp.all(jnp.isfinite(known.values))
        return (number < k) & missing & ~has_all

    end: tuple[jax.Array, Top, jax.Array] = lax.while_loop(is_incomplete, more, start)
    return end[1]


def _candidates(matvec: Matvec, known: Top, like: jax.Array, num: int, key: jax.Array) -> Top:
    """Return the largest Ritz pairs in the orthogonal complement of known vectors."""
    vectors, k = known.vectors, len(known.values)

    def outside(v: jax.Array) -> jax.Array:
        return v - vectors.T @ (vectors @ v)

    size = jnp.max(jnp.where(jnp.isfinite(known.values), jnp.abs(known.values), 0), initial=0)

    def deflated(v: jax.Array) -> jax.Array:
        # What rounding lets in of the known vectors is moved below everything else, for at zero it
        # would be the largest where all eigenvalues are negative.
        return outside(matvec(outside(v))) - 4 * size * (vectors.T @ (vectors @ v))

    start = outside(outside(jax.random.normal(key, like.shape, like.dtype)))
    ritz = lanczos(deflated, start, num)
    values, found = ritz.values[::-1][:k], ritz.vectors.T[::-1][:k] @ ritz.basis
    # Once the complement is exhausted, rounding leads back into the span of the known vectors.
    new = jnp.linalg.norm(found @ vectors.T, axis=1) < 0.1
    values = jnp.where(new | jnp.isnan(values), values, -jnp.inf)
    found = jnp.where(jnp.isneginf(values)[:, None], 0, found)
    norm = jnp.max(jnp.where(jnp.isfinite(ritz.values), jnp.abs(ritz.values), 0))
    return Top(values, found, lax.map(matvec, found), norm)


def _merged(known: Top, found: Top) -> Top:
    """Return the largest Ritz pairs in the span of two orthogonal sets of vectors."""
    k = len(known.values)
    values, vectors, products = (
        jnp.concatenate(pair) for pair in zip(known[:3], found[:3], strict=True)
    )
    there = ~jnp.isneginf(values)  # but NaN, which is to be seen
    matrix = jnp.where(there[:, None] & there, vectors @ products.T, 0)
    below = -(4 * k * jnp.max(jnp.abs(matrix), initial=0) + 1)
    matrix = (matrix + matrix.T) / 2 + jnp.diag(jnp.where(there, 0, below))
    values, turn = jnp.linalg.eigh(matrix)
    values = jnp.where(jnp.arange(2 * k) >= jnp.sum(~there), values, -jnp.inf)
    chosen = jnp.where(jnp.isneginf(values), 0, turn)[:, ::-1][:, :k].T
    norm = jnp.where(known.norm > 0, known.norm, found.norm)
    return Top(values[::-1][:k], chosen @ vectors, chosen @ products, norm)


def arnoldi(matvec: Matvec, start: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """Return the Ritz values of any square matrix in a Krylov space, the largest first.

    Returns:
      The values [num], complex, zero where the space is exhausted; and their residuals [num].
    """
    found = decomp().hessenberg(num, reortho="full", custom_vjp=False)(matvec, start)
    matrix = found.J_small
    alive = jnp.append(True, jnp.cumprod(jnp.diagonal(matrix, -1) > _least(matrix)).astype(bool))
    matrix = jnp.where(alive[:, None] & alive, matrix, 0)
    values, vectors = jnp.linalg.eig(matrix)
    next_length = jnp.where(jnp.all(alive), jnp.linalg.norm(found.residual), 0)
    residuals = next_length * jnp.abs(vectors[-1])
    order = jnp.argsort(-jnp.abs(values))
    return values[order], residuals[order]

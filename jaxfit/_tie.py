"""What keeps the last bits of a run from depending on what is recorded of it."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@jax.custom_jvp
def tie(value: jax.Array, tree: Any, *others: Any) -> Any:
    """Return a tree as it is, tied to other trees in a way no compiler sees through.

    Why: a product and the sum it goes into are rounded once instead of twice where XLA makes them
    one operation, which depends on who else needs the product. A recorder that looks at it is such
    a need, so looking would change the last bits of the run. What a recorder can look at is
    therefore tied to itself, so that no product meets a sum across that point, and all of it to
    the next parameters, so that it is needed whether or not anybody looks.

    How: exclusive or with the bits of all of them, where ``value`` is one NaN of 16 million; that
    is, never. lax.optimization_barrier does not do: it is gone when operations are merged.
    """
    never = lax.bitcast_convert_type(value.astype(np.float32), np.int32) == 0x7FED0000

    def tied(*leaves):
        if jnp.iscomplexobj(leaves[0]):
            parts = ([leaf.real for leaf in leaves], [leaf.imag for leaf in leaves])
            return lax.complex(*(tied(*part) for part in parts))
        dtype = leaves[0].dtype
        integer = np.dtype(f"int{8 * dtype.itemsize}")
        first, *rest = (lax.bitcast_convert_type(leaf.astype(dtype), integer) for leaf in leaves)
        # Not a select: that becomes a branch, and operations do not merge across branches.
        mask = functools.reduce(operator.and_, rest or [first]) & never.astype(integer)
        return lax.bitcast_convert_type(first ^ mask, dtype)

    return jax.tree.map(tied, tree, *others)


@tie.defjvp
def _tie_jvp(primals, tangents):
    # Untied: a derivative's own arithmetic is another program in any case, and bits that are
    # flipped have no derivative where JAX forgets this rule, as 0.10 does in second derivatives.
    return primals[1], tangents[1]

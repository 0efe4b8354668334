"""What is refused before anything is compiled: one sentence with the given and the way out."""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfit import _tree


def count(name: str, value: Any) -> int:
    """A whole number from 1 to what int32 holds, or a sentence."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} is {_show(value)}, but must be a whole number known when the loop is "
            f"compiled: give a Python int."
        ) from None
    if not 1 <= number < 2**31:
        raise ValueError(f"{name} is {number}, but must be at least 1 and below 2**31.")
    return number


def lengths(num_steps: Any, record_every: Any, keyframe_every: Any) -> tuple[int, int, int | None]:
    """The three numbers that shape a run, as ints that fit together."""
    num_steps, record_every = count("num_steps", num_steps), count("record_every", record_every)
    if keyframe_every is not None:
        keyframe_every = count("keyframe_every", keyframe_every)
        if keyframe_every % record_every:
            raise ValueError(
                f"keyframe_every is {keyframe_every} and record_every {record_every}, but a "
                f"keyframe starts a row: make keyframe_every a multiple of record_every."
            )
    return num_steps, record_every, keyframe_every


def data(data: Any) -> Any:
    """What a step sees: None, a function of the step, or arrays that share a leading axis."""
    if data is None or callable(data):
        if data is not None and not _takes(data, 1):
            raise TypeError(
                f"data is the function {_show(data)}, but a function of data takes one argument, "
                f"the step: write data=lambda step: batch."
            )
        return data
    return examples("data", data, "; or a function of the step for anything else")[0]


def examples(name: str, arrays: Any, otherwise: str = "") -> tuple[Any, int]:
    """A pytree of arrays that share a leading axis, and the length of that."""
    leaves = jax.tree.leaves(arrays)
    for leaf in leaves:
        if not _tree.is_array(leaf):
            raise TypeError(
                f"{name} holds {_show(leaf)}, but its leaves must be arrays: "
                f"convert them with jnp.asarray."
            )
    lengths = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        shapes = " and ".join(str(jnp.shape(leaf)) for leaf in leaves) or "none"
        raise ValueError(
            f"{name} holds arrays of shape {shapes}, but they must share one leading axis, of one "
            f"example or more: give arrays [examples, …]{otherwise}."
        )
    return jax.tree.map(jnp.asarray, arrays), lengths.pop()[0]


def is_typed_key(key: Any) -> bool:
    """Whether this is one of JAX's new PRNG keys, or an array of them."""
    return isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def key(key: Any, otherwise: str = "") -> None:
    """One PRNG key, of either style."""
    typed = is_typed_key(key)
    old = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32 and key.ndim > 0
    if not typed and not old:
        raise TypeError(
            f"key is {_short(key) if hasattr(key, 'dtype') else _show(key)}, but must be a PRNG "
            f"key: give jax.random.key(0), say{otherwise}."
        )
    if np.ndim(key) != (0 if typed else 1) or (old and key.shape[0] not in (2, 4)):
        raise ValueError(
            f"key is an array {_short(key)}, but must be one PRNG key: "
            f"pick one, or map over them with jax.vmap."
        )


def optimizer(optimizer: Any) -> optax.GradientTransformation:
    """An optax optimizer, an object with its two methods, or a rule (gradients, parameters)."""
    if inspect.isclass(optimizer) or not (
        callable(optimizer)
        or all(callable(getattr(optimizer, name, None)) for name in ("init", "update"))
    ):
        raise TypeError(
            f"optimizer is {_show(optimizer)}, but must be an optax optimizer, or a function of "
            f"(gradients, parameters) that returns updates: build one, as in optax.adam(1e-3)."
        )
    if not hasattr(optimizer, "update"):
        if _required(optimizer) != 2:
            raise TypeError(
                f"optimizer is the function {_show(optimizer)}, but must be an optax optimizer or "
                f"a rule of two arguments, (gradients, parameters): call a factory such as "
                f"optax.adam first, and give a schedule to an optimizer as its learning rate."
            )
        return optax.stateless(optimizer)
    return optax.GradientTransformation(optimizer.init, optimizer.update)


def function(name: str, value: Any, arguments: int) -> None:
    """A function of so many arguments; how many a loss takes follows from whether it has data."""
    expected = {
        ("loss", 1): "no data was given, so it is called as loss(params): give data=(x, y), or",
        ("loss", 2): "data was given, so it is called as loss(params, batch): leave data out, or",
        ("record", 1): "it is called as record(step):",
    }[name, arguments]
    if not callable(value):
        raise TypeError(f"{name} is {_show(value)}, but must be a function.")
    if not _takes(value, arguments):
        raise TypeError(
            f"{name} {_show(value)} takes other arguments, but {expected} change its signature."
        )


def value(objective: Callable, iterate: Any, step: Any, has_aux: bool) -> None:
    """The loss on the first batch is one real number that depends on the parameters."""
    if not jax.tree.leaves(iterate):
        raise ValueError(
            "params has no floating or complex leaf, so there is nothing to train: "
            "write 1.0 where 1 was meant, or convert integer arrays to floating ones."
        )
    jaxpr, out = jax.make_jaxpr(objective, return_shape=True)(iterate, step)
    is_pair = isinstance(out, tuple) and len(out) == 2
    if has_aux and not is_pair:
        raise TypeError(
            f"has_aux=True was given, but the loss returned {_shapes(out)}: "
            f"return the pair (loss, aux), or leave has_aux out."
        )
    if is_pair and not has_aux:
        raise TypeError(
            f"the loss returned the pair {_shapes(out)}, but one scalar was expected: "
            f"give has_aux=True if it returns (loss, aux)."
        )
    value = out[0] if has_aux else out
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape:
        raise ValueError(
            f"the loss returned {_shapes(value)}, but one scalar was expected: "
            f"take its mean or sum."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"the loss returned {_shapes(value)}, but a real floating number was expected: "
            f"convert it, or take its real part."
        )
    if not _depends(jaxpr.jaxpr, len(jax.tree.leaves(iterate))):
        raise ValueError(
            "the loss does not depend on the parameters, so every gradient would be zero: "
            "use its first argument in it."
        )


def opt_state(given: Any, optimizer: optax.GradientTransformation, trained: Any) -> None:
    """The optimizer can be served, and a given state of it belongs to it and these parameters."""
    expected = jax.eval_shape(optimizer.init, trained)
    if _holds(expected, optax.contrib.DifferentiallyPrivateAggregateState):
        raise ValueError(
            "the optimizer is a differentially private one, which takes per-example gradients, but "
            "a step has one gradient of its batch: write your own loop with jax.vmap(jax.grad)."
        )
    if _holds(expected, optax.LookaheadState) and not isinstance(trained, optax.LookaheadParams):
        raise ValueError(
            "the optimizer is optax.lookahead, which keeps slow parameters beside the fast ones, "
            "but params is not a pair: give optax.LookaheadParams.init_synced(params)."
        )
    if given is not None and (found := difference(expected, given)):
        raise ValueError(
            f"the given State does not belong to this optimizer ({found} in its optimizer "
            f"state): go on with the optimizer that made it, or start this one afresh with "
            f"jaxfit.init(state.params, optimizer)."
        )


@contextlib.contextmanager
def update_errors() -> Iterator[None]:
    """Say of an error in an optimizer's update what the way out can be."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"the optimizer could not make an update ({reason}): mend it so that it takes these "
            f"parameters, or, if it wraps lbfgs, a line search or sam, let that be outermost."
        ) from error


def update(before: Any, after: Any, trained: Any, updates: Any) -> None:
    """An update keeps the shape of the optimizer's state, and has that of the parameters."""
    if found := difference(before, after):
        raise ValueError(
            f"the optimizer's update changed the shape of its state ({found}), but a compiled "
            f"loop needs it to stay: let its init return what its update does, and record with "
            f"record=… what optax.monitor would."
        )
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    if shapes(trained) != shapes(updates):
        raise ValueError(
            f"the optimizer returned {_shapes(updates)} as updates of {_shapes(trained)}, but both "
            f"must have one structure and the same shapes: return what is to be added."
        )


def kind(name: str, value: Any, expected: type, example: str) -> None:
    """A value of ours."""
    if not isinstance(value, expected):
        raise TypeError(
            f"{name} is a {type(value).__name__}, but must be a {expected.__name__}: "
            f"give {example}."
        )


def stretch(start: Any, stop: Any, frames: Any, end: Any) -> None:
    """Two steps of a run, in their order, as far as its keyframes and its end are known."""
    for name, step in (("start", start), ("stop", stop)):
        if isinstance(step, bool) or not hasattr(step, "__index__"):
            raise TypeError(
                f"{name} is {_show(step)}, but must be the number of a step: give a Python int."
            )
    if jnp.ndim(end):
        raise ValueError(
            f"run holds runs of shape {jnp.shape(end)}, but one is replayed at a time: "
            f"map over them with jax.vmap."
        )
    if start > stop:
        raise ValueError(f"start is {start} and stop {stop}, but start comes first: swap them.")
    if any(isinstance(known, jax.core.Tracer) for known in (frames, end)):
        return
    if not frames[0] <= start <= stop <= end:
        raise ValueError(
            f"start is {start} and stop {stop}, but the run goes from step {frames[0]} to {end}: "
            f"stay within, and use train to go on."
        )


def replayable(loss: Callable, params: Any, data: Any, step: jax.Array) -> None:
    """The loss takes the parameters of a run on this data."""
    try:
        if data is None:
            jax.eval_shape(lambda: loss(params))
        else:
            jax.eval_shape(lambda: loss(params, data(step) if callable(data) else data))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"the loss cannot be computed from the parameters of the run and this data ({reason}): "
            f"replay with the loss and the data that the run was made with."
        ) from error


def recorded(row: Any) -> Any:
    """What a recorder returned is something."""
    if not jax.tree.leaves(row):
        raise ValueError(
            f"record returned {row}, but a row needs at least one array: "
            f"return what to keep, such as step.loss."
        )
    return row


def difference(expected: Any, given: Any) -> str | None:
    """The first place where two trees of arrays differ in structure, shape or dtype."""
    structure: Callable[[Any], Any] = jax.tree.structure
    if structure(expected) != structure(given):
        return f"{_shapes(given)} in the place of {_shapes(expected)}"
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(given), strict=True
    ):
        if _short(one) != _short(other):
            name = jax.tree_util.keystr(path)
            return f"{_short(other)} in the place of {_short(one)} at leaf {name!r}"
    return None


def _holds(tree: Any, kind: type) -> bool:
    """Whether a node of this type is somewhere in a tree."""
    found = lambda node: isinstance(node, kind)
    return any(map(found, jax.tree.leaves(tree, is_leaf=found)))


def _takes(function: Callable, number: int) -> bool:
    """Whether a call with so many positional arguments binds; True where nobody can tell."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(number))
    except TypeError:
        return False
    return True


def _required(function: Callable) -> int:
    """How many positional arguments a function cannot do without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def _depends(jaxpr: Any, inputs: int) -> bool:
    """Whether the first output can depend on any of the first inputs."""
    reached = {id(variable) for variable in jaxpr.invars[:inputs]}
    for equation in jaxpr.eqns:
        if any(id(variable) in reached for variable in equation.invars):
            reached.update(id(variable) for variable in equation.outvars)
    return id(jaxpr.outvars[0]) in reached


def _short(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def _shapes(tree: Any) -> str:
    """A tree with float32[3, 2] in the place of arrays, shortened."""
    text = str(
        jax.tree.map(lambda leaf: _Text(_short(leaf)) if hasattr(leaf, "dtype") else leaf, tree)
    )
    return text if len(text) < 200 else text[:197] + "…"


class _Text(str):
    """Text that is printed without quotes inside of tuples and dicts."""

    __repr__ = str.__str__


def _show(value: Any) -> str:
    """What was given: a function by its name, anything else as Python prints it."""
    return (getattr(value, "__name__", None) or repr(value))[:80]

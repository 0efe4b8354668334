"""What is refused before anything is compiled: one sentence with the given and the way out."""

from __future__ import annotations

import contextlib
import inspect
import operator
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfit import _tree
from jaxfit.run import Run, State, Step
from jaxfit.stop import Rule


def count(name: str, value: Any) -> int:
    """A whole number from 1 to what int32 holds, or a sentence."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} is {show(value)}, but must be a whole number known when the loop is "
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


def start(params: Any, num_steps: int) -> None:
    """Refuse what a run cannot start from, and a State after which int32 cannot count its steps."""
    if isinstance(params, Run | Step):
        kind = type(params).__name__
        raise TypeError(
            f"params is a {kind}, but must be parameters or a State: "
            f"give {kind.lower()}.state to go on from there."
        )
    if not isinstance(params, State):
        return
    step = params.step
    if np.ndim(step):
        raise ValueError(
            f"params holds States of shape {np.shape(step)}, but a run goes on from one: pick one "
            f"with jax.tree.map(lambda leaf: leaf[0], states), or map train over them with "
            f"jax.vmap."
        )
    if isinstance(step, jax.core.Tracer):
        return
    try:
        first = operator.index(step)
    except TypeError:
        raise TypeError(
            f"params is a State whose step is {show(step)}, but a step is a whole number: "
            f"begin at 0 with jaxfit.init(params, optimizer)."
        ) from None
    if not 0 <= first <= 2**31 - 1 - num_steps:
        raise ValueError(
            f"params is a State at step {first} and num_steps is {num_steps}, but steps are "
            f"counted from 0 to 2**31 - 1: take fewer, or count afresh from "
            f"jaxfit.State(0, state.params, state.opt_state)."
        )


def data(data: Any) -> Any:
    """What a step sees: None, a function of the step, or arrays that share a leading axis."""
    if data is None or callable(data):
        if data is not None and not _takes(data, 1):
            raise TypeError(
                f"data is the function {show(data)}, but a function of data takes one argument, "
                f"the step: write data=lambda step: batch."
            )
        return data
    if isinstance(data, Iterator):
        raise TypeError(
            f"data is {show(data)}, but batches one after the other are taken by fit alone: give "
            f"arrays, or a function of the step, as jaxfit.host_batches makes of one of Python's."
        )
    return examples("data", data, "; or a function of the step for anything else")[0]


def examples(name: str, arrays: Any, otherwise: str = "") -> tuple[Any, int]:
    """A pytree of arrays that share a leading axis, and the length of that."""
    leaves = jax.tree.leaves(arrays)
    for leaf in leaves:
        if not _tree.is_array(leaf):
            raise TypeError(
                f"{name} holds {show(leaf)}, but its leaves must be arrays: "
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


def key(key: Any, otherwise: str = "") -> None:
    """One PRNG key, of either style."""
    typed = _tree.is_key(key)
    old = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32 and key.ndim > 0
    if not typed and not old:
        raise TypeError(
            f"key is {_short(key) if hasattr(key, 'dtype') else show(key)}, but must be a PRNG "
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
            f"optimizer is {show(optimizer)}, but must be an optax optimizer, or a function of "
            f"(gradients, parameters) that returns updates: build one, as in optax.adam(1e-3)."
        )
    if not hasattr(optimizer, "update"):
        if _required(optimizer) != 2:
            raise TypeError(
                f"optimizer is the function {show(optimizer)}, but must be an optax optimizer or "
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
        raise TypeError(f"{name} is {show(value)}, but must be a function.")
    if not _takes(value, arguments):
        raise TypeError(
            f"{name} {show(value)} takes other arguments, but {expected} change its signature."
        )


def value(objective: Callable, iterate: Any, step: Any, has_aux: bool) -> None:
    """The loss on the first batch is one real number that depends on the parameters."""
    if not jax.tree.leaves(iterate):
        raise ValueError(
            "params has no floating or complex leaf, so there is nothing to train: "
            "write 1.0 where 1 was meant, or convert integer arrays to floating ones."
        )
    try:
        jaxpr, out = jax.make_jaxpr(objective, return_shape=True)(iterate, step)
    except _UNKNOWN as error:
        raise TypeError(
            f"the loss, or data, asks for a number before there is one ({_reason(error)}): compute "
            f"with jax.numpy alone, and choose with jnp.where in the place of if."
        ) from error
    is_pair = isinstance(out, tuple) and len(out) == 2
    if has_aux and not is_pair:
        raise TypeError(
            f"has_aux=True was given, but the loss returned {shapes(out)}: "
            f"return the pair (loss, aux), or leave has_aux out."
        )
    if is_pair and not has_aux:
        raise TypeError(
            f"the loss returned the pair {shapes(out)}, but one scalar was expected: "
            f"give has_aux=True if it returns (loss, aux)."
        )
    value = out[0] if has_aux else out
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape:
        raise ValueError(
            f"the loss returned {shapes(value)}, but one scalar was expected: take its mean or sum."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"the loss returned {shapes(value)}, but a real floating number was expected: "
            f"convert it, or take its real part."
        )
    if not _depends(jaxpr.jaxpr, len(jax.tree.leaves(iterate))):
        raise ValueError(
            "the loss does not depend on the parameters, so every gradient would be zero: "
            "use its first argument in it."
        )


def opt_state(given: State | None, optimizer: optax.GradientTransformation, trained: Any) -> None:
    """The optimizer can be served, and a given State belongs to it and these parameters."""
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
    if given is not None and (found := difference(expected, given.opt_state)):
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
        raise ValueError(
            f"the optimizer could not make an update ({_reason(error)}): mend it so that it takes "
            f"these parameters, or, if it wraps lbfgs, a line search or sam, let that be outermost."
        ) from error


def update(before: Any, after: Any, trained: Any, updates: Any) -> None:
    """An update keeps the shape of the optimizer's state, and has that of the parameters."""
    if found := difference(before, after):
        raise ValueError(
            f"the optimizer's update changed the shape of its state ({found}), but a compiled "
            f"loop needs it to stay: let its init return what its update does, and record with "
            f"record=… what optax.monitor would."
        )
    if jax.tree.map(jnp.shape, trained) != jax.tree.map(jnp.shape, updates):
        raise ValueError(
            f"the optimizer returned {shapes(updates)} as updates of {shapes(trained)}, but both "
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
                f"{name} is {show(step)}, but must be the number of a step: give a Python int."
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
    first = np.asarray(frames)[0]  # not as JAX's: under jit, that would be traced
    if not first <= start <= stop <= int(end):
        raise ValueError(
            f"start is {start} and stop {stop}, but the run goes from step {first} to {end}: "
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
        raise ValueError(
            f"the loss cannot be computed from the parameters of the run and this data "
            f"({_reason(error)}): replay with the loss and the data that the run was made with."
        ) from error


def concrete(name: str, value: Any, driver: str) -> None:
    """What drives a run from Python is not given what is traced."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        raise TypeError(
            f"{name} is traced, but {driver} is driven from Python and compiles for itself: "
            f"call it outside of jit, vmap and grad, and train inside."
        )


def rule(stop: Any) -> None:
    """When a run ends: not at all, where a function of a step is true, or by a rule."""
    if isinstance(stop, Rule):
        for name, function, number in ("init", stop.init, 0), ("update", stop.update, 2):
            if not callable(function) or not _takes(function, number):
                raise TypeError(
                    f"the rule stop has {show(function)} as its {name}, but that must be a "
                    f"function of {number} arguments: write Rule(lambda: memory, "
                    f"lambda step, memory: (boolean, memory))."
                )
        return
    if stop is not None and not callable(stop):
        raise TypeError(
            f"stop is {show(stop)}, but must be a function of a Step that returns a boolean, or a "
            f"rule: give one, such as jaxfit.stop.loss_below(0.1)."
        )
    if stop is not None and not _takes(stop, 1):
        raise TypeError(
            f"stop {show(stop)} takes other arguments, but it is called as stop(step): change its "
            f"signature, or call it first, as in jaxfit.stop.no_improvement(10)."
        )


def ending(value: Any, stop: Any) -> None:
    """What a rule says is one boolean."""
    if not _is_carried(value) or _short(value) != "bool[]":
        raise TypeError(
            f"stop {show(stop)} returned {shapes(value)}, but must return one boolean: compare "
            f"something, as in step.loss < 0.1, or call a maker of rules first, as in "
            f"jaxfit.stop.loss_below(0.1)."
        )


def directory(path: Any) -> pathlib.Path:
    """Return the absolute path of a directory, which may not be there yet."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"checkpoint_dir is {show(path)}, but must be the path of a directory.")
    if path == "":
        raise ValueError(
            'checkpoint_dir is "", but must be the path of a directory: give "." for this one.'
        )
    try:
        path = pathlib.Path(path).expanduser().absolute()
    except RuntimeError:
        raise ValueError(
            f"checkpoint_dir is {show(path)}, but there is no such home directory: give another."
        ) from None
    if path.exists() and not path.is_dir():
        raise ValueError(f"checkpoint_dir is {path}, which is a file: give a directory.")
    return path


def batches(fn: Any) -> None:
    """A Python function of the step."""
    if not callable(fn) or not _takes(fn, 1):
        raise TypeError(
            f"host_batches was given {show(fn)}, but needs a function of one argument, the step."
        )


def batch_leaf(leaf: np.ndarray) -> None:
    """A leaf of a batch is numbers."""
    if not _tree.is_array(leaf):
        raise TypeError(
            f"a batch holds {show(leaf.tolist())}, but its leaves must be arrays of numbers: "
            f"convert them, or leave them out."
        )


def batch(step: int, like: Any, given: Any) -> Any:
    """A batch is made like the first."""
    if found := difference(like, given):
        raise ValueError(
            f"the batch of step {step} is not like the first ({found}), but one program takes all "
            f"of them: give batches of one shape, and drop what is left at the end of an epoch."
        )
    return given


def first_batch(iterator: Any) -> Any:
    """An iterable has batches."""
    for batch in iterator:
        return batch
    raise ValueError("data is an iterable without a batch: give one that has as many as steps.")


def progress(progress: Any) -> bool | None:
    """What tqdm calls disable: None where there is no terminal."""
    if progress not in (True, False, "always"):
        raise ValueError(f'progress is {show(progress)}, but must be True, False or "always".')
    return {True: None, False: True, "always": False}[progress]


def sweep(fn: Any, axes: Any) -> None:
    """Check the axes of a sweep, and that a function takes an item of each as a keyword."""
    if not isinstance(axes, Mapping) or not axes:
        raise TypeError(
            f"axes is {show(axes)}, but must be a dict of one axis or more by name: "
            f'give some, as in {{"lr": jnp.logspace(-3, 0, 32)}}.'
        )
    for name, axis in axes.items():
        if not isinstance(name, str):
            raise TypeError(
                f"axes has the name {show(name)}, but fn is called with one keyword for each axis: "
                f"name axes with strings."
            )
        _axis(name, axis)
    if not callable(fn):
        raise TypeError(f"fn is {show(fn)}, but must be a function of {', '.join(axes)}.")
    with contextlib.suppress(ValueError):  # nobody can tell what some builtins take
        signature = inspect.signature(fn)
        try:
            signature.bind(**axes)
        except TypeError as error:
            raise TypeError(
                f"fn takes {signature}, but is called with one keyword for each axis, "
                f"{', '.join(axes)} ({error}): name the axes as its arguments."
            ) from None


def _axis(name: Any, axis: Any) -> None:
    """Check one axis: Python objects in a dict or a list, or arrays with a leading axis."""
    unnamed = [label for label in axis if not isinstance(label, str)] if is_outside(axis) else []
    if unnamed and isinstance(axis, Mapping):
        raise TypeError(
            f"axis {name!r} has the label {show(unnamed[0])}, but Python objects in a dict are "
            f"labelled by strings: give these, or a list, whose items are labelled by their str."
        )
    concrete(f"axis {name!r}", axis, "sweep")
    if is_outside(axis):
        if not len(axis):
            raise ValueError(f"axis {name!r} is empty, but needs one item or more.")
        labels = [str(label) for label in axis]
        if repeated := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(
                f"axis {name!r} has the label {repeated[0]!r} more than once, but labels tell runs "
                f"apart: give a dict with a label for each."
            )
        return
    leaves = jax.tree.leaves(axis)
    for leaf in leaves:
        if not hasattr(leaf, "dtype") or not _tree.is_array(leaf):
            raise TypeError(
                f"axis {name!r} is {show(axis)}, but must be an array of numbers or PRNG keys, a "
                f"pytree of such arrays, or Python objects in a dict or a list: "
                f"convert numbers with jnp.asarray, and put anything else in a dict."
            )
    lengths = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        given = " and ".join(str(jnp.shape(leaf)) for leaf in leaves) or "none"
        raise ValueError(
            f"axis {name!r} has arrays of shape {given}, but they must share one leading axis, of "
            f"one item or more: give arrays [items, …], or a list to compile for each by itself."
        )


def is_outside(axis: Any) -> bool:
    """Return whether an axis of a sweep holds Python objects, for one program each."""
    if isinstance(axis, Mapping):
        try:
            leaves = jax.tree.leaves(axis)
        except ValueError:  # JAX cannot sort the labels
            return True
        return not leaves or not all(
            hasattr(leaf, "dtype") and _tree.is_array(leaf) for leaf in leaves
        )
    return isinstance(axis, list)


def devices(devices: Any) -> list[jax.Device]:
    """Return one device or more as a list."""
    listed = list(devices) if isinstance(devices, Iterable) else []
    if not listed or not all(isinstance(one, jax.Device) for one in listed):
        raise TypeError(
            f"devices is {show(devices)}, but must be one device or more in a list: "
            f"give some of jax.devices()."
        )
    if repeated := [one for one in listed if listed.count(one) > 1]:
        raise ValueError(
            f"devices has {repeated[0]} more than once, but each device takes a part of the runs: "
            f"give each once."
        )
    return listed


def results(labels: list[dict[str, str]], results: list[Any], again: Callable[[], Any]) -> None:
    """Check that a function returns an array, and the same shapes and Python objects for all runs.

    The first result is traced ``again`` if there are such objects: those that the function makes
    are others then.
    """
    objects = [_objects(result) for result in results]
    if objects[0]:
        objects.append(_objects(again()))
    for other in objects[1:]:
        for path in objects[0] | other:
            one, two = objects[0].get(path), other.get(path)
            if one is not two and not (callable(one) and one == two):  # as methods are, looked up
                at = f" at leaf {path!r}" if path else ""
                raise TypeError(
                    f"fn returned {show(other.get(path, one))}{at}, but the leaves of a result "
                    f"must be arrays, numbers, or Python objects that are the same for all runs: "
                    f"leave it out, or make it once, outside of fn."
                )
    is_array = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    only = lambda tree: jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, tree)
    arrays = [only(_tree.unpack(result)) for result in results]
    for label, result in zip(labels, arrays, strict=True):
        if found := difference(arrays[0], result):
            raise ValueError(
                f"fn returns one shape for {labels[0]} and another for {label} ({found}), but the "
                f"runs of a sweep are put in one array: return less, such as the losses alone, or "
                f"sweep them one by one."
            )
    if not jax.tree.leaves(arrays[0]):
        raise ValueError(
            f"fn returned {shapes(_tree.unpack(results[0]))}, but a sweep needs at least one "
            f"array: return what to keep."
        )


def _objects(result: Any) -> dict[str, Any]:
    """Return the leaves of a result that are Python objects, by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(_tree.unpack(result))
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in leaves
        if not isinstance(leaf, jax.ShapeDtypeStruct)
    }


def memory(runs: int, size: int, available: int | None) -> None:
    """Check that the results of all runs, each of some bytes, fit into the host's memory."""
    if available is not None and runs * size > available:
        raise ValueError(
            f"the result would take {runs * size / 1e9:,.1f} GB ({runs:,} runs of {size:,} bytes), "
            f"but the host has {available / 1e9:,.1f} GB: return the losses alone, or the end of "
            f"the run, or record fewer rows with record_every."
        )


def scores(scores: Any, shape: tuple[int, ...]) -> None:
    """Check that there is one real number per run, of which one is not NaN."""
    if not hasattr(scores, "dtype") or np.shape(scores) != shape or np.iscomplexobj(scores):
        raise ValueError(
            f"by gives {shapes(scores)}, but the best run is that of the lowest number, of shape "
            f"{list(shape)}: give by=lambda values: … with one number per run."
        )
    if np.isnan(scores).all():
        raise ValueError("all runs score NaN, so none is best: score something that is a number.")


def recorded(row: Any, rest: Any) -> Any:
    """Return a row, which holds at least one array."""
    if not any(map(_is_carried, jax.tree.leaves(returned("record", row, rest)))):
        raise ValueError(
            f"record returned {show(row)}, but a row needs at least one array: "
            f"return what to keep, such as step.loss."
        )
    return row


def returned(name: str, tree: Any, rest: Any) -> Any:
    """Return a tree, which holds arrays, numbers, and objects that ride along in the parameters.

    These are known by their identity: what is made afresh at every call, a string or a function,
    would give rows of one run different structures.
    """
    known = {id(leaf) for leaf in jax.tree.leaves(rest) if not _tree.is_array(leaf)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not _is_carried(leaf) and id(leaf) not in known:
            at = f" at leaf {jax.tree_util.keystr(path)!r}" if path else ""
            raise TypeError(
                f"{name} returned {show(leaf)}{at}, but may return only arrays and numbers of "
                f"JAX's dtypes, and objects found in the parameters: leave it out."
            )
    return tree


def _is_carried(leaf: Any) -> bool:
    """Return whether JAX can carry a leaf through a loop: no text, float0 or too large an int."""
    try:
        return _tree.is_array(leaf) and jax.typeof(leaf).dtype != jax.dtypes.float0
    except (OverflowError, TypeError):
        return False


def difference(expected: Any, given: Any) -> str | None:
    """The first place where two trees of arrays differ in structure, shape or dtype."""
    structure: Callable[[Any], Any] = jax.tree.structure
    if structure(expected) != structure(given):
        return f"{shapes(given)} in the place of {shapes(expected)}"
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
    try:
        dtype: Any = jnp.result_type(leaf)
    except TypeError:  # which JAX does not have
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
    return f"{dtype}{list(np.shape(leaf))}"


def shapes(tree: Any) -> str:
    """A tree with float32[3, 2] in the place of arrays, shortened."""
    text = str(
        jax.tree.map(lambda leaf: _Text(_short(leaf)) if hasattr(leaf, "dtype") else leaf, tree)
    )
    return text if len(text) < 200 else text[:197] + "…"


# What JAX raises where Python is to know a number that is traced.
_UNKNOWN = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def _reason(error: Exception) -> str:
    """Return the first line of an error, to be put in a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


class _Text(str):
    """Text that is printed without quotes inside of tuples and dicts."""

    __repr__ = str.__str__


def show(value: Any) -> str:
    """What was given: a function by its name, anything else as Python prints it."""
    named = getattr(value, "update", value) if isinstance(value, tuple) else value
    return (getattr(named, "__name__", None) or " ".join(repr(value).split()))[:80]

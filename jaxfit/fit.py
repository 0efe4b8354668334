"""One long run, driven from Python in compiled chunks: progress, Ctrl-C, an early end."""

from __future__ import annotations

import collections
import contextlib
import functools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from jaxfit import _check, _host, _tree
from jaxfit._host import Static
from jaxfit.record import whole
from jaxfit.stop import Rule
from jaxfit.train import Run, State, Step, advance_recording, init

__all__ = ["fit"]

_SECONDS = 0.5  # that a chunk takes
_BYTES = 2**24  # of rows that a chunk leaves on the device, at most


def fit(
    loss: Callable[..., Any],
    params: Any,
    optimizer: Any,
    num_steps: int,
    *,
    data: Any = None,
    has_aux: bool = False,
    record: Callable[[Step], Any] = whole,
    record_every: int = 1,
    chunk_size: int | None = None,
    progress: bool | str = True,
    stop: Callable[[Step], Any] | Rule | None = None,
) -> Run:
    """The run of `train`, bit for bit, driven from Python in compiled chunks.

    While the device computes one chunk, the host stores the rows of the one before it: host memory
    holds what is recorded, device memory the rows of two chunks. One program serves chunks of
    all lengths, and one more the last steps if ``record_every`` does not divide their number; they
    are kept as ``jax.jit`` keeps them, so that a second call with the same objects and shapes
    compiles nothing.

    Args:
      loss: as in `train`.
      params: as in `train`: where to start, or a `State` to go on from.
      optimizer: as in `train`.
      num_steps: how many updates to make.
      data: as in `train`.
      has_aux: as in `train`.
      record: as in `train`.
      record_every: as in `train`.
      chunk_size: how many steps to make at once, rounded up to a multiple of ``record_every``. By
        default as many as take about half a second or record 16 MB, whichever is less.
      progress: whether to show a bar with steps per second, time left and the loss, if there is a
        terminal or notebook to show it in; ``"always"`` shows it in a file or pipe, too.
      stop: a function of a `Step` that returns whether to end there, or a rule of ``jaxfit.stop``.
        The run ends at the first step for which it is true, as if ``num_steps`` had been the
        number of steps before it: ``run.state`` is the state that this step found.

    Returns:
      A `Run` whose rows are NumPy arrays in host memory, without keyframes; its ``ended`` says why
      it ended before ``num_steps`` steps, if it did.

      Ctrl-C ends it after the current chunk, and the run so far is returned; a second Ctrl-C raises
      KeyboardInterrupt at once.

    Raises:
      TypeError, ValueError: as `train` does, before anything is compiled.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> loss = lambda a: jnp.sum((a - 1.0) ** 2)
    >>> run = jaxfit.fit(loss, jnp.zeros(2), optax.adam(0.1), 1000, progress=False)
    >>> run.trajectory["params"].shape
    (1000, 2)
    """
    num_steps, record_every, _ = _check.lengths(num_steps, record_every, None)
    if chunk_size is not None:
        chunk_size = _check.count("chunk_size", chunk_size)
    _check.function("record", record, 1)
    _check.rule(stop)
    hidden = _check.progress(progress)
    _check.concrete("params or data", (params, data), "fit")
    resumed = isinstance(params, State)
    state = _tree.hold(params if resumed else init(params, optimizer))
    data = _tree.pack(_check.data(data))
    memory = stop.init() if isinstance(stop, Rule) else ()
    seen = memory, jnp.asarray(np.int32(-1)), jnp.zeros((), np.float32)
    run = Static((loss, optimizer, has_aux, record, stop))

    full, rest = divmod(num_steps, record_every)  # rows whose steps are all made, steps of the last
    total = full + (rest > 0)
    shapes = _chunk.eval_shape(run, record_every, 1, state, data, seen, 1)[1]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    _check.memory(total, size, _host.memory())
    if chunk_size is None:
        capacity, length = max(1, min(full, _BYTES // max(size, 1))), 1
    else:
        capacity = length = max(1, min(full, -(-chunk_size // record_every)))

    def begin(state: Any, seen: Any, row: int, number: int, last: int = rest) -> _Chunk:
        """Start on so many rows; on the one after the full ones, of so many steps."""
        every, most = (record_every, capacity) if row < full else (last, 1)
        after = _chunk(run, every, most, state, data, seen, number)
        return _Chunk(state, row, number, number * every, *after)

    rows, structure = jax.tree.flatten(shapes)
    rows = [np.empty((total, *leaf.shape[1:]), leaf.dtype) for leaf in rows]
    first, made, clock = int(state.step), 0, time.perf_counter()
    started: collections.deque[_Chunk] = collections.deque()
    with _interrupts() as asked, tqdm(total=num_steps, unit=" steps", disable=hidden) as bar:
        begun = 0
        while made < num_steps:
            if begun < total and not (asked and begun):
                number = min(length, full - begun) if begun < full else 1
                chunk = begin(state, seen, begun, number)
                state, seen, begun = chunk.after, chunk.seen, begun + number
                started.append(chunk)
                if len(started) == 1 and begun < total:
                    continue  # one is computed while the one before it is stored
            elif not started:
                break
            chunk = started.popleft()
            _host.wait(chunk.rows)
            for whole, part in zip(rows, jax.tree.leaves(chunk.rows), strict=True):
                whole[chunk.row : chunk.row + chunk.number] = np.asarray(part)[: chunk.number]
            # As NumPy's: anything that JAX computes of them would wait for the chunk just started.
            where, value = map(np.asarray, chunk.seen[1:])
            made += chunk.steps
            if where >= 0:
                made = int(where) - first
                break
            bar.update(chunk.steps)
            bar.set_postfix(loss=f"{float(value):.4g}")
            if chunk_size is None:
                now = time.perf_counter()
                fitting = int(_SECONDS * chunk.number / max(now - clock, 1e-6))
                length, clock = max(1, min(fitting, 8 * chunk.number, capacity)), now

    state, ended = chunk.after, None
    if where >= 0:
        # The steps of this chunk before the one that ends the run, once more.
        state, again = chunk.before, made - chunk.row * record_every
        number, last = divmod(again, record_every)
        if number:
            state = begin(state, seen, chunk.row, number).after
        if last:
            state = begin(state, seen, full, 1, last).after
        ended = f"{_check.show(stop)} was true at step {first + made}"
    elif made < num_steps:
        ended = f"interrupted before step {first + made}"
        print(f"fit: {ended} of {first + num_steps}; the run so far is returned.", file=sys.stderr)
    kept = -(-made // record_every)
    trajectory = jax.tree.unflatten(structure, [whole[:kept] for whole in rows])
    steps = jnp.asarray(first + np.arange(0, made, record_every, dtype=np.int32))
    known = None if resumed else range(0, made, record_every)
    trajectory = _tree.unpack(_tree.with_keys(trajectory))
    return Run(steps, trajectory, None, _tree.unpack(state), known, ended)


class _Chunk(NamedTuple):
    """Some steps that were started."""

    before: Any  # the packed State
    row: int  # the first it leaves
    number: int  # of rows
    steps: int
    after: Any
    rows: Any  # [capacity, …]
    seen: Any  # the rule's memory, the step where it was true or -1, and the last loss


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _chunk(
    run: Static,
    record_every: int,
    capacity: int,
    state: Any,
    data: Any,
    seen: Any,
    number: jax.Array | int,
) -> tuple[Any, Any, Any]:
    """Some rows of a run: the state after them, the rows [capacity, …], and what was seen."""
    loss, optimizer, has_aux, record, stop = run.things

    def watch(step: Step, seen: Any) -> Any:
        memory, where, _ = seen
        true: Any = jnp.array(False)
        if isinstance(stop, Rule):
            true, memory = stop.update(step, memory)
        elif stop is not None:
            true = stop(step)
        _check.ending(true, stop)
        where = jnp.where((where < 0) & true, step.step, where)
        return memory, where, step.loss.astype(np.float32)

    state, rows, seen = advance_recording(
        loss,
        _tree.unpack(state),
        optimizer,
        number,
        capacity,
        data=_tree.unpack(data),
        has_aux=has_aux,
        record=record,
        record_every=record_every,
        watch=watch,
        seen=seen,
    )
    return _tree.hold(state), _tree.without_keys(rows), seen


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """What the first Ctrl-C is noted in; the second does what it did before."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only there can signals be handled
        return
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def note(number, _):
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)

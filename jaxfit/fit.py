"""One long run, driven from Python in compiled chunks: progress, Ctrl-C, checkpoints, streams."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm.auto import tqdm

from jaxfit import _check, _host, _loops, _tree
from jaxfit._host import Static
from jaxfit._step import Problem, in_arrays, stepper
from jaxfit.checkpoint import Directory, identity
from jaxfit.record import whole
from jaxfit.run import Run, State, Step
from jaxfit.stop import Rule
from jaxfit.stream import Stream, is_stream
from jaxfit.train import init

__all__ = ["fit"]

_SECONDS = 0.5  # that a chunk takes
_MOST_SECONDS = 5  # in a long run with a directory
_BYTES = 2**24  # of rows and of batches that a chunk has on the device, at most


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
    checkpoint_dir: str | os.PathLike[str] | None = None,
    stop: Callable[[Step], Any] | Rule | None = None,
) -> Run:
    """The run of `train`, bit for bit, driven from Python in compiled chunks.

    While the device computes one chunk, the host stores the rows of the one before it and reads
    the batches of the one after it: host memory holds what is recorded, or nothing of it with a
    ``checkpoint_dir``, and device memory the rows and batches of two chunks. One program serves
    chunks of all lengths, and one more the last steps if ``record_every`` does not divide their
    number; they are kept as ``jax.jit`` keeps them, so that a second call with the same objects and
    shapes compiles nothing.

    Args:
      loss: as in `train`.
      params: as in `train`: where to start, or a `State` to go on from.
      optimizer: as in `train`.
      num_steps: how many updates to make.
      data: as in `train`; or ``jaxfit.host_batches(fn)``, a Python function of the step; or an
        iterable of batches, such as a generator or a DataLoader. A generator that is at its end
        ends the run; what can be iterated again begins its next epoch. An iterable knows no steps:
        it is read up to two chunks ahead, and a run that is resumed sees what it gives next, not
        what its step would have seen. With ``host_batches``, runs are resumed exactly. Workers that
        read the rows of a directory have to be spawned: TensorStore aborts those that are forked.
      has_aux: as in `train`.
      record: as in `train`.
      record_every: as in `train`.
      chunk_size: how many steps to make at once, rounded up to a multiple of ``record_every``. By
        default as many as take about half a second, or have 16 MB of rows and batches if that is
        less; with a ``checkpoint_dir``, a hundredth of the time so far, up to five seconds, and
        more if writing takes a tenth of that.
      progress: whether to show a bar with steps per second, time left and the loss, if there is a
        terminal or notebook to show it in; ``"always"`` shows it in a file or pipe, too.
      checkpoint_dir: a directory, new or with this run, which then goes on, to the last bit, from
        its last chunk, up to ``num_steps`` in all; a finished one is returned at once. Each chunk
        is written in the background and committed as a whole with its rows, the `State` after it
        and what a rule of ``stop`` remembers, so that a process can be killed at any moment. Needs
        the extra ``checkpoint``; takes the disk space of a `State` for each chunk.
      stop: a function of a `Step` that returns whether to end there, or a rule of ``jaxfit.stop``.
        The run ends at the first step for which it is true, as if ``num_steps`` had been the
        number of steps before it: ``run.state`` is the state that this step found.

    Returns:
      A `Run` whose rows are NumPy arrays in host memory, without keyframes; with a
      ``checkpoint_dir``, they are read from there as in `load`, and the end of every chunk is a
      keyframe. Its ``stop_reason`` says why it ended before ``num_steps`` steps, if it did.

      Ctrl-C ends it after the current chunk, and the run so far is returned; a second Ctrl-C raises
      KeyboardInterrupt at once. A process that ignores SIGINT goes on ignoring it.

      With ``jax.distributed``, every process calls `fit` alike and has all rows; the first shows
      progress, all write to ``checkpoint_dir``, which all must see, and Ctrl-C raises at once.
      Batches that come from Python have to be the same in all.

    Raises:
      TypeError, ValueError: as `train` does, before anything is compiled; ValueError, too, if
        ``checkpoint_dir`` holds another run, with the difference: other shapes or dtypes, optimizer
        or record, first batch or computation. Where it ends is no part of what a run is.
      RuntimeError: if another `fit` is writing to ``checkpoint_dir``.
      OSError: if a chunk could not be written; those before it are safe.
      Exception: whatever data, loss or record raise, after the steps before are committed; notes
        name the steps.

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
    hidden = _check.progress(progress) if jax.process_index() == 0 else True
    path = None if checkpoint_dir is None else _check.directory(checkpoint_dir)
    streamed = is_stream(data)
    _check.concrete("params or data", (params, None if streamed else data), "fit")
    _check.start(params, num_steps)
    resumed = isinstance(params, State)
    state = _tree.hold(in_arrays(params) if resumed else init(params, optimizer))
    first = int(state.step)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(Stream(data)) if streamed else None
        data = stream.shapes(record_every) if stream else _tree.pack(_check.data(data))

        memory = stop.init() if isinstance(stop, Rule) else ()
        nowhere = jnp.asarray(np.int32(-1)), jnp.zeros((), np.float32)

        def traced(stop: Any, memory: Any) -> Any:
            """The program of one row."""
            run = Static((loss, optimizer, has_aux, record, stop))
            return _chunk.trace(run, record_every, 1, state, data, (memory, *nowhere), 1)

        one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        row = jax.tree.map(one, traced(stop, memory).out_info[1])
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))

        if path is None:
            _check.memory(-(-num_steps // record_every), size, _host.memory())
            rows: _Rows | Directory = _Rows(row, first, num_steps, record_every, resumed)
        else:
            batch = stream.first if stream else _first_batch(data, state.step)
            program = traced(None, ())  # where it ends does not make it another
            about = identity(_tree.unpack(state), _tree.unpack(row), batch, record_every, program)
            rows = stack.enter_context(Directory(path, about, _tree.unpack(row)))
            kept, memory = rows.begin(_tree.unpack(state), memory, first + num_steps)
            state = _tree.hold(kept)

        full = max(1, num_steps // record_every)  # rows whose steps are all made
        if chunk_size is None:
            held = size + (stream.size * record_every if stream else 0)
            pace = _Pace(1, max(1, min(full, _BYTES // max(held, 1))), path is not None)
        else:
            capacity = min(full, -(-chunk_size // record_every))
            pace = _Pace(capacity, capacity, None)
        run = Static((loss, optimizer, has_aux, record, stop))
        end, stop_reason, error = num_steps, None, None  # as far as is known
        made = at = until = int(state.step) - first  # steps stored, started, and with data
        if made and stream and not stream.exact:
            warnings.warn(
                f"data is an iterable, which knows no steps: step {first + made} sees the first "
                f"batch that it gives; with jaxfit.host_batches, a run goes on exactly.",
                stacklevel=2,
            )
        seen = memory, *nowhere
        reading, room = None, pace.capacity * record_every
        started: collections.deque[_Chunk] = collections.deque()
        asked = stack.enter_context(_interrupts())
        bar = tqdm(total=num_steps, initial=made, unit=" steps", disable=hidden)
        stack.enter_context(bar)

        def span(start: int) -> int:
            """How many steps to take at once from there."""
            steps = min(pace.length * record_every, end - start)
            return steps - steps % record_every or steps

        try:
            while made < end:
                if asked and 0 < at < end:
                    end, stop_reason = at, f"interrupted before step {first + at}"
                elif at < end and len(started) < 2:  # one is computed while another is stored
                    if at == until and stream:
                        data, number, over, error = (
                            reading or stream.read(first + at, span(at), room)
                        ).result()
                        until += number
                        if over:
                            end, stop_reason = until, f"data ended before step {first + until}"
                        reading = None
                        if until < end:
                            reading = stream.read(first + until, span(until), room)
                    elif at == until:
                        until += span(at)
                    steps = min(until, end) - at
                    if steps >= record_every:
                        steps -= steps % record_every
                        every, most, number = record_every, pace.capacity, steps // record_every
                    else:
                        every, most, number = steps, 1, 1
                    if steps:
                        try:
                            after, new, saw = _chunk(run, every, most, state, data, seen, number)
                        except Exception as raised:  # what was started before it is still stored
                            end, error = at, raised
                            continue
                        new = _host.replicated(new)  # before the next chunk is in its way
                        started.append(
                            _Chunk(at, at + steps, number, state, seen, data, after, new, saw)
                        )
                        at, state, seen = at + steps, after, saw
                else:
                    chunk = started.popleft()
                    _host.wait(chunk.rows)
                    # As NumPy's: whatever JAX computes would wait for the chunk just started.
                    where, value = map(np.asarray, chunk.saw[1:])
                    if where >= 0:  # the steps of this chunk before that one, once more
                        end, error = int(where) - first, None
                        stop_reason = f"{_check.show(stop)} was true at step {where}"
                        at, until, data = chunk.start, chunk.stop, chunk.data
                        state, seen = chunk.before, chunk.seen
                        started.clear()
                        continue
                    begun = time.perf_counter()
                    rows.commit(
                        first + chunk.start,
                        first + chunk.stop,
                        _tree.unpack(chunk.after),
                        chunk.saw[0],
                        [np.asarray(leaf)[: chunk.number] for leaf in jax.tree.leaves(chunk.rows)],
                    )
                    storing, made = time.perf_counter() - begun, chunk.stop
                    bar.update(chunk.stop - chunk.start)
                    bar.set_postfix(loss=f"{float(value):.4g}")
                    pace.measure(chunk.number, storing)
            if error is not None:
                raise error
        except Exception as raised:
            if kept := rows.kept(first + made):
                raised.add_note(f"fit: {kept}")
            raise

        done = rows.run(_tree.unpack(state), stop_reason)
        if asked and stop_reason and stop_reason.startswith("interrupted"):
            kept = "committed and returned" if path else "returned"
            print(
                f"fit: {stop_reason} of {first + num_steps}; the run so far is {kept}.",
                file=sys.stderr,
            )
        return done


class _Chunk(NamedTuple):
    """Some steps that were started."""

    start: int
    stop: int
    number: int  # of rows
    before: Any  # the packed State
    seen: Any  # the rule's memory, the step where it was true or -1, and the last loss
    data: Any
    after: Any  # the State
    rows: Any  # [capacity, …]
    saw: Any  # what was seen after it


class _Rows:
    """Rows in host memory."""

    def __init__(self, row: Any, first: int, num_steps: int, every: int, resumed: bool):
        leaves, self._structure = jax.tree.flatten(row)
        number = -(-num_steps // every)
        self._arrays = [np.empty((number, *leaf.shape), leaf.dtype) for leaf in leaves]
        self._first, self._every, self._resumed = first, every, resumed

    def commit(self, start: int, stop: int, state: Any, rule: Any, rows: list[Any]) -> None:
        """Store the rows of some steps."""
        at = (start - self._first) // self._every
        for stored, part in zip(self._arrays, rows, strict=True):
            stored[at : at + len(part)] = part

    def kept(self, made: int) -> str:
        """Say what became of the steps before that one, for the note of an error."""
        return f"the steps before step {made} are lost, without a checkpoint_dir."

    def run(self, state: State, stop_reason: str | None) -> Run:
        """The run so far."""
        made = int(state.step) - self._first
        rows = jnp.asarray(self._first + np.arange(0, made, self._every, dtype=np.int32))
        kept = jax.tree.unflatten(self._structure, [stored[: len(rows)] for stored in self._arrays])
        known = None if self._resumed else range(0, made, self._every)
        return Run(rows, _tree.unpack(_tree.with_keys(kept)), None, state, known, stop_reason)


class _Pace:
    """How many rows a chunk has, by the clock unless ``growing`` is None."""

    def __init__(self, length: int, capacity: int, growing: bool | None):
        self.length, self.capacity, self._growing = length, capacity, growing
        self._seconds, self._measured = _SECONDS, 0
        self._begun = self._clock = time.perf_counter()

    def measure(self, number: int, storing: float) -> None:
        """Choose the next length, after a chunk of so many rows that took so long to store."""
        # Processes have to agree, on what the first of them measures of the first chunks.
        if self._growing is None or (jax.process_count() > 1 and self._measured == 16):
            return
        now = time.perf_counter()
        elapsed = now - self._clock
        if self._growing:  # a directory is for long runs, and each chunk has its files there
            self._seconds = max(self._seconds, min((now - self._begun) / 100, _MOST_SECONDS))
            if storing > elapsed / 10:
                self._seconds = min(2 * self._seconds, 60)
        fitting = int(self._seconds * number / max(elapsed - storing, 1e-6))
        length = max(1, min(fitting, 8 * number, self.capacity))
        if jax.process_count() > 1:
            length = int(multihost_utils.broadcast_one_to_all(np.int32(length)))
        self.length, self._clock, self._measured = length, now, self._measured + 1


def _first_batch(data: Any, step: jax.Array) -> Any:
    """What the first step sees of data that JAX can compute."""
    if not callable(_tree.unpack(data)):
        return _tree.unpack(data)
    batch = jax.jit(lambda data, step: _tree.pack(_tree.unpack(data)(step)))(data, step)
    return _tree.unpack(batch)


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

    problem = stepper(Problem(loss, optimizer, _tree.unpack(data), has_aux), _tree.unpack(state))

    @problem.unit
    def watched(state: State, info: Any, seen: Any) -> Any:
        step, (memory, where, _) = problem.step_of(state, info), seen
        true: Any = jnp.array(False)
        if isinstance(stop, Rule):
            true, memory = stop.update(step, memory)
        elif stop is not None:
            true = stop(step)
        _check.ending(true, stop)
        where = jnp.where((where < 0) & true, step.step, where)
        return memory, where, step.loss.astype(np.float32)

    def take(carry: Any) -> Any:
        state, seen = carry
        after, info = problem.take(state)
        return (after, watched(state, info, seen)), info

    row_of = problem.row_of(record)
    (state, seen), rows = _loops.recording(
        take,
        lambda carry, info: row_of(carry[0], info),
        (problem.state, seen),
        number,
        capacity,
        record_every,
    )
    state = problem.restore(state)
    return _tree.hold(state), _tree.without_keys(rows), seen


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """What the first Ctrl-C is noted in; the second does what it did before."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield asked  # only there can signals be handled, and processes would not end together
        return
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler
    if before is signal.SIG_IGN:  # as for what a shell script starts in the background
        yield asked
        return

    def note(number, _):
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)

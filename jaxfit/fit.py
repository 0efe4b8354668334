"""One long run, driven from Python in compiled chunks: progress, Ctrl-C, checkpoints, streams."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys

import jax
from tqdm.auto import tqdm

from jaxfit import _check, _tree
from jaxfit._disk.directory import Directory, checked_path
from jaxfit._disk.manifest import fingerprint
from jaxfit._drive import interrupts, rules
from jaxfit._drive.chunks import End, Program, chunks
from jaxfit._drive.pace import Pace
from jaxfit._drive.rules import Stop
from jaxfit._drive.sinks import MemoryRows, Sink
from jaxfit._drive.sources import open_source
from jaxfit._problem import Problem, check_start
from jaxfit._step import in_arrays
from jaxfit._types import Data, Loss, Optimizer, Params, Recorder
from jaxfit.record import whole
from jaxfit.run import Run, State
from jaxfit.stream import is_stream
from jaxfit.train import init

__all__ = ["fit"]


def fit(
    loss: Loss,
    params: Params | State,
    optimizer: Optimizer,
    num_steps: int,
    *,
    data: Data | None = None,
    has_aux: bool = False,
    record: Recorder = whole,
    record_every: int = 1,
    chunk_size: int | None = None,
    progress: bool | str = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    stop: Stop = None,
) -> Run:
    """Make the run of `train`, bit for bit, driven from Python in compiled chunks.

    While the device computes one chunk, the host stores the rows of the one before it and reads
    the batches of the one after it. The host's memory holds what is recorded, or nothing of it with
    a ``checkpoint_dir``; the device's memory holds the rows and batches of two chunks. One program
    serves chunks of all lengths, and another the last steps if ``record_every`` does not divide
    their number. Programs are kept as ``jax.jit`` keeps them: a second call with the same objects
    and shapes compiles nothing.

    Args:
      loss: as in `train`.
      params: as in `train`: where to start, or a `State` to go on from.
      optimizer: as in `train`.
      num_steps: how many updates to make.
      data: as in `train`; or ``jaxfit.host_batches(fn)``, a Python function of the step; or an
        iterable of batches, such as a generator or a DataLoader. A generator that is exhausted
        ends the run; other iterables are iterated again. An iterable has no batch for a given step:
        it is read up to two chunks ahead, and a resumed run sees whatever it gives next. With
        ``host_batches``, runs are resumed exactly. If worker processes read the rows of a
        directory, spawn them: TensorStore aborts processes that are forked.
      has_aux: as in `train`.
      record: as in `train`.
      record_every: as in `train`.
      chunk_size: the number of steps to make at once, rounded up to a multiple of ``record_every``.
        By default as many as take about half a second, or have 16 MB of rows and batches if that is
        less. With a ``checkpoint_dir``, a hundredth of the time so far, up to five seconds, and
        more if writing takes a tenth of that.
      progress: whether to show a bar with steps per second, time left and the loss, if there is a
        terminal or notebook to show it in; ``"always"`` shows it in a file or pipe as well.
      checkpoint_dir: a directory, new or with this run. A run that is there goes on from its last
        chunk, bit for bit, up to ``num_steps`` in all; a finished one is returned at once. Each
        chunk is written in the background and committed as a whole, with its rows, the `State`
        after it and the memory of the ``stop`` rule, so that the process can be killed at any
        moment. Needs the extra ``checkpoint``, and the disk space of a `State` for each chunk.
      stop: a function of a `Step` that returns whether to end there, or a rule of ``jaxfit.stop``.
        The run ends at the first step for which it is true, as if ``num_steps`` had been the
        number of steps before it: ``run.state`` is the state before that step.

    Returns:
      A `Run` whose rows are NumPy arrays in host memory, without keyframes. With a
      ``checkpoint_dir``, rows are read from there as in `load`, and the end of every chunk is a
      keyframe. Its ``stop_reason`` says why it ended before ``num_steps`` steps, if it did.

      Ctrl-C ends the run after the current chunk, and what was made so far is returned; a second
      Ctrl-C raises KeyboardInterrupt at once. A process that ignores SIGINT goes on ignoring it.

      With ``jax.distributed``, every process calls `fit` in the same way and gets all rows. The
      first shows progress, all write to ``checkpoint_dir``, which all must see, and Ctrl-C raises
      at once. Batches that come from Python must be the same in all processes.

    Raises:
      TypeError, ValueError: as `train` does, before anything is compiled; and ValueError if
        ``checkpoint_dir`` holds another run, with the difference: other shapes or dtypes, optimizer
        or record, first batch or computation. ``num_steps`` and ``stop`` may differ.
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
    rules.check_rule(stop)
    hides_bar = _hides_bar(progress)
    path = None if checkpoint_dir is None else checked_path(checkpoint_dir)
    _check.concrete("params or data", (params, None if is_stream(data) else data), "fit")
    check_start(params, num_steps)
    from_start = not isinstance(params, State)
    state = init(params, optimizer) if from_start else in_arrays(params)
    first = int(state.step)
    with contextlib.ExitStack() as stack:
        source = open_source(data)
        stack.callback(source.close)
        program = Program(Problem(loss, optimizer, None, has_aux), record, record_every, stop)
        row = program.row(state, source)
        if path is None:
            sink: Sink = MemoryRows(row, first, num_steps, record_every, from_start)
        else:
            traced = dataclasses.replace(program, stop=None).trace(state, source)
            batch = source.first(state.step)
            manifest = fingerprint(state, row, batch, record_every, traced)
            sink = stack.enter_context(Directory(path, manifest, row))
        state, memory = sink.begin(state, rules.first_memory(stop), first + num_steps)
        if (done := int(state.step)) > first:
            source.warn_if_resumed(done)
        full = max(1, num_steps // record_every)  # rows that have all their steps
        if chunk_size is None:
            size = _tree.nbytes(row) + source.batch_bytes * record_every
            pace = Pace.measured(full, record_every, size, growing=path is not None)
        else:
            pace = Pace.fixed(min(full, -(-chunk_size // record_every)), record_every)
        end = End(first + num_steps)
        asked = stack.enter_context(interrupts.noted())
        bar = tqdm(total=num_steps, initial=done - first, unit=" steps", disable=hides_bar)
        stack.enter_context(bar)
        try:
            for chunk in chunks(program, state, memory, source, pace, end, asked):
                with pace.storing():
                    sink.commit(chunk.start, chunk.stop, chunk.state, chunk.memory, chunk.rows)
                state, done = chunk.state, chunk.stop
                bar.update(chunk.stop - chunk.start)
                bar.set_postfix(loss=f"{chunk.loss:.4g}")
                pace.measure(chunk.num_rows)
            if end.error is not None:
                raise end.error
        except Exception as error:
            if kept := sink.kept(done):
                error.add_note(f"fit: {kept}")
            raise
        run = sink.run(state, end.reason)
    if asked and end.reason and end.reason.startswith("interrupted"):
        kept = "committed and returned" if path else "returned"
        print(
            f"fit: {end.reason} of {first + num_steps}; the run so far is {kept}.", file=sys.stderr
        )
    return run


def _hides_bar(progress: bool | str) -> bool | None:
    """Return what tqdm calls ``disable``: None hides the bar where there is no terminal."""
    if progress not in (True, False, "always"):
        raise ValueError(
            f'progress is {_check.show(progress)}, but must be True, False or "always".'
        )
    if jax.process_index() != 0 or progress is False:
        return True
    return None if progress is True else False

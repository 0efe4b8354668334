"""One long run, driven from Python in compiled chunks: progress, Ctrl-C, checkpoints, streams."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sys

from jaxfit import _check, _tree
from jaxfit._disk.directory import Directory
from jaxfit._disk.manifest import fingerprint
from jaxfit._disk.paths import checked_path
from jaxfit._drive import bars, interrupts, rules
from jaxfit._drive.chunks import End, chunks
from jaxfit._drive.hook import Hook, check_pauses
from jaxfit._drive.pace import Marks, Pace
from jaxfit._drive.program import Program
from jaxfit._drive.rules import Stop
from jaxfit._drive.sinks import MemoryRows, Sink
from jaxfit._drive.sources import Source, open_source
from jaxfit._problem import Problem, check_start
from jaxfit._step import in_arrays
from jaxfit._types import Callback, Data, Evaluate, Loss, Optimizer, Params, PyTree, Recorder, Row
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
    carry: PyTree = None,
    record: Recorder = whole,
    record_every: int = 1,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    chunk_size: int | None = None,
    progress: bool | str = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    stop: Stop = None,
    callback: Callback | None = None,
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
      carry: as in `train`.
      record: as in `train`.
      record_every: as in `train`.
      evaluate: as in `train`.
      evaluate_every: as in `train`, and how often ``callback`` is called; with a callback, it can
        be given without ``evaluate``. Chunks end at these steps.
      chunk_size: the number of steps to make at once, rounded up to a multiple of ``record_every``.
        By default as many as take about half a second, or four times as long as ``callback`` takes,
        or have 16 MB of rows and batches if that is less. With a ``checkpoint_dir``, a hundredth of
        the time so far, up to five seconds, and more if writing takes a tenth of that.
      progress: whether to show a bar with steps per second, time left and the loss, if there is a
        terminal or notebook to show it in; ``"always"`` shows it in a file or pipe as well.
      checkpoint_dir: a directory, new or with this run. A run that is there goes on from its last
        chunk, bit for bit, up to ``num_steps`` in all; a finished one is returned at once. Each
        chunk is written in the background and committed as a whole, with its rows, the `State`
        after it and the memory of the ``stop`` rule, so that the process can be killed at any
        moment. Needs the extra ``checkpoint``, and the disk space of a `State` for each chunk.
      stop: a function of a `Step` that returns whether to end there, or a rule of ``jaxfit.stop``.
        The run ends at the first step for which it is true, as if ``num_steps`` had been the
        number of steps before it: ``run.state`` is the state before that step. What the rule
        remembers goes with this State, so that `fit` from there with the same rule goes on
        counting, or ends at once if the rule was what ended the run.
      callback: ``callback(state, rows, evaluation)``, called on the host after every
        ``evaluate_every`` steps and at the end, in order and once each; without ``evaluate_every``,
        after every chunk. It is given the State there, the rows since the last call, ``[rows, …]``,
        and what ``evaluate`` returned, or None, with NumPy arrays. The run ends there if it returns
        True. It sees no steps that a rule discards, nor, in a run that goes on from its
        ``checkpoint_dir``, those that were shown and committed. See ``jaxfit.callbacks``.

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
    num_steps, record_every = _check.lengths(num_steps, record_every)
    if chunk_size is not None:
        chunk_size = _check.count("chunk_size", chunk_size)
    _check.function("record", record, "step")
    evaluate_every = check_pauses(record_every, evaluate, evaluate_every, callback)
    rules.check_rule(stop, evaluate)
    bars.check_progress(progress)
    path = None if checkpoint_dir is None else checked_path(checkpoint_dir)
    given = params, carry, None if is_stream(data) else data
    _check.concrete("params, carry or data", given, "fit")
    check_start(params, num_steps, carry)
    from_start = not isinstance(params, State)
    state = init(params, optimizer, carry) if from_start else in_arrays(params)
    marks = Marks(int(state.step), evaluate_every)
    end = End(marks.first + num_steps)
    problem = Problem(loss, optimizer, None, has_aux)
    program = Program(problem, record, record_every, stop, evaluate, marks)
    with contextlib.ExitStack() as stack:
        source = open_source(data)
        stack.callback(source.close)
        row = program.row(state, source)
        if path is None:
            sink: Sink = MemoryRows(row, marks, num_steps, record_every, from_start)
        else:
            sink = stack.enter_context(_directory(path, program, state, source, row))
        hook = Hook(callback, row, marks)
        state, memory = sink.begin(state, rules.remembered(stop, params), end.step)
        if (done := int(state.step)) > marks.first:
            source.warn_if_resumed(done)
            hook.catch_up(sink, done, end.step)
        size = _tree.nbytes(row) + source.batch_bytes * record_every
        pace = Pace.of(chunk_size, num_steps, record_every, size, path is not None, marks)
        asked = stack.enter_context(interrupts.noted())
        bar = stack.enter_context(bars.bar(progress, "steps", num_steps, done - marks.first))
        try:
            stand = program.begin(state, memory, sink, end.step)
            for chunk in chunks(program, stand, source, pace, end, asked):
                with pace.storing():
                    sink.commit(chunk.start, chunk.stop, *chunk.after.kept, chunk.rows)
                stand, done = chunk.after, chunk.stop
                bar.update(chunk.stop - chunk.start)
                bar.set_postfix(loss=f"{stand.loss:.4g}")
                if hook.ends(chunk, end):
                    break
                pace.measure(chunk.num_rows, hook.seconds)
            if end.error is not None:
                raise end.error
            stand = program.finish(stand, sink, done)
            hook.finish(stand)
        except Exception as error:
            if kept := sink.kept(done):
                error.add_note(f"fit: {kept}")
            raise
        state = dataclasses.replace(stand.state, _memory=rules.to_remember(stop, stand.memory))
        run = sink.run(state, end.reason)
    if asked and end.reason and end.reason.startswith("interrupted"):
        _say_interrupted(end.reason, marks.first + num_steps, path)
    return run


def _directory(
    path: pathlib.Path, program: Program, state: State, source: Source, row: Row
) -> Directory:
    """Open the directory of a run."""
    evaluation, traced = program.evaluation_like(state), program.trace_all(state, source)
    batch = source.first(state.step)
    every = program.record_every, program.marks.period if program.evaluate else None
    return Directory(
        path, fingerprint(state, row, evaluation, batch, *every, traced), row, evaluation
    )


def _say_interrupted(reason: str, end: int, path: pathlib.Path | None) -> None:
    """Tell whoever pressed Ctrl-C what became of the run."""
    kept = "committed and returned" if path else "returned"
    print(f"fit: {reason} of {end}; the run so far is {kept}.", file=sys.stderr)

"""Ready-made callbacks, which log a run or draw it while ``jaxfit.fit`` makes it.

A callback is any function ``(state, rows, evaluation) -> bool | None``; these are the common ones.
They log the scalars of the rows, named by their place, such as ``loss`` or ``aux/accuracy``, at the
steps of the rows; and those of the evaluation, such as ``evaluation/loss``, at the step of the
State. Larger arrays and complex numbers are left out, and booleans are 0 and 1. Nothing in a row
but its entry ``step`` says which step it belongs to, so the rows need one: the ready-made recorders
have it. If there are several processes, the first logs.

One of your own can call others and decide where the run ends, and a run of ``train`` is logged
afterwards by ``callback(run.state, run.trajectory, None)``.
"""

from __future__ import annotations

import importlib
import itertools
import os
import pathlib
import time
from collections.abc import Callable
from csv import reader, writer
from typing import Any

import numpy as np

from jaxfit import _check
from jaxfit._drive.curves import show
from jaxfit._drive.scalars import Scalars, logs
from jaxfit._types import Callback

__all__ = ["csv", "curve", "mlflow", "tensorboard", "wandb"]


def csv(path: str | os.PathLike[str]) -> Callback:
    """Write scalars to a CSV file: a line for every row, and one for every evaluation.

    The first column is the step. In the line of an evaluation the columns of the rows are empty,
    and the other way round. Numbers are written with as many digits as tell them from any other of
    their dtype. If there is a file with the same columns, its lines before the run's first step
    stay and the others go. So the file of a run that goes on from its ``checkpoint_dir``, however
    it ended, is that of an undisturbed run, and a new run replaces the lines of an old one.

    Args:
      path: the file.

    Returns:
      A callback, for ``fit(…, callback=…)``. It raises ValueError if the file has other columns.

    >>> import pathlib, tempfile, optax, jaxfit
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.csv"
    >>> run = jaxfit.fit(lambda a: (a - 1.0) ** 2, 0.0, optax.sgd(0.25), 3, progress=False,
    ...                  callback=jaxfit.callbacks.csv(path))
    >>> print(path.read_text())
    step,loss,params
    0,1.0,0.0
    1,0.25,0.5
    2,0.0625,0.75
    <BLANKLINE>
    """
    path = pathlib.Path(path)

    def begin() -> Callable[[Scalars], None]:
        names: list[str] = []
        end = -1  # the step up to which lines are written

        def log(seen: Scalars) -> None:
            nonlocal names, end
            first = int(seen.steps[0]) if len(seen.steps) else seen.step
            if not names or first < end:
                names = [*seen.rows, *seen.evaluation]
                _begin_file(path, ["step", *names], first, len(seen.rows))
            with path.open("a", encoding="utf-8", newline="") as file:
                lines = (
                    [step, *(str(values[name]) if name in values else "" for name in names)]
                    for step, values in seen.points()
                )
                writer(file, lineterminator="\n").writerows(lines)
            end = seen.step

        return log

    return logs(begin)


def tensorboard(logdir: str | os.PathLike[str], *, every: int = 1) -> Callback:
    """Write scalars to a directory that TensorBoard shows.

    Needs tensorboardX, or else PyTorch and tensorboard. Logging a number takes about 0.1 ms.

    Args:
      logdir: the directory; a run that goes on can write to it again.
      every: log the rows whose step is a multiple of this.

    Returns:
      A callback, for ``fit(…, callback=…)``.

    Raises:
      ImportError: if neither library is installed.

    >>> import tempfile, optax, jaxfit
    >>> callback = jaxfit.callbacks.tensorboard(tempfile.mkdtemp(), every=10)
    >>> loss = lambda a: (a - 1.0) ** 2
    >>> run = jaxfit.fit(loss, 0.0, optax.sgd(0.25), 100, callback=callback, progress=False)
    """
    every = _check.count("every", every)
    library = _imported("tensorboard", "tensorboardX", "torch.utils.tensorboard")

    def begin() -> Callable[[Scalars], None]:
        events = library.SummaryWriter(os.fspath(logdir), flush_secs=1)

        def log(seen: Scalars) -> None:
            for step, values in seen.points(every):
                for name, value in values.items():
                    events.add_scalar(name, float(value), step)
            events.flush()

        return log

    return logs(begin)


def wandb(*, every: int = 1, **options: Any) -> Callback:
    """Log scalars to Weights & Biases, online or offline.

    They go to the run that is active, or else to a new one. ``wandb.finish()`` ends it; if nothing
    does, it ends with the process. Logging a step takes about a millisecond.

    Args:
      every: log the rows whose step is a multiple of this.
      **options: passed to ``wandb.init``, such as ``project="line"`` or ``mode="offline"``.

    Returns:
      A callback, for ``fit(…, callback=…)``.

    Raises:
      ImportError: if wandb is not installed.

    >>> import jaxfit
    >>> jaxfit.callbacks.wandb(mode="offline", every=10)  # doctest: +SKIP
    """
    every = _check.count("every", every)
    library = _imported("wandb", "wandb")

    def begin() -> Callable[[Scalars], None]:
        run = library.run or library.init(**options)

        def log(seen: Scalars) -> None:
            for step, values in seen.points(every):
                run.log({name: float(value) for name, value in values.items()}, step=step)

        return log

    return logs(begin)


def mlflow(*, every: int = 1, **options: Any) -> Callback:
    """Log scalars as the metrics of an MLflow run, on a server or in a local database.

    They go to the run that is active, or else to a new one. ``mlflow.end_run()`` ends it; if
    nothing does, it ends with the process. ``mlflow.set_tracking_uri`` says where runs are kept.

    Args:
      every: log the rows whose step is a multiple of this.
      **options: passed to ``mlflow.start_run``, such as ``run_name="line"``.

    Returns:
      A callback, for ``fit(…, callback=…)``.

    Raises:
      ImportError: if mlflow is not installed.

    >>> import jaxfit
    >>> jaxfit.callbacks.mlflow(run_name="line", every=10)  # doctest: +SKIP
    """
    every = _check.count("every", every)
    library, entities = _imported("mlflow", "mlflow"), _imported("mlflow", "mlflow.entities")

    def begin() -> Callable[[Scalars], None]:
        run = library.active_run() or library.start_run(**options)
        client = library.MlflowClient()

        def log(seen: Scalars) -> None:
            now = int(1000 * time.time())
            metrics = (
                entities.Metric(name, float(value), now, step)
                for step, values in seen.points(every)
                for name, value in values.items()
            )
            while batch := list(itertools.islice(metrics, 1000)):  # as many as MLflow takes at once
                client.log_batch(run.info.run_id, metrics=batch)

        return log

    return logs(begin)


def curve(*names: str) -> Callback:
    """Draw curves of scalars in a notebook, below the cell that calls ``fit``, as the run goes on.

    They are drawn again at every call, which takes some 50 ms: let ``evaluate_every`` be a second's
    worth of steps or more, or leave it out. Outside a notebook, each call prints a line with the
    last values. The scale is logarithmic if all values are positive.

    Args:
      *names: what to draw, such as ``"loss"`` or ``"evaluation/accuracy"``; by default every loss,
        and an evaluation that is one number.

    Returns:
      A callback, for ``fit(…, callback=…)``, for one run. It raises ValueError if there is no
      scalar of a name.

    >>> import optax, jaxfit
    >>> loss = lambda a: (a - 1.0) ** 2
    >>> run = jaxfit.fit(loss, 0.0, optax.sgd(0.25), 4, progress=False, evaluate_every=2,
    ...                  evaluate=lambda state: abs(state.params - 1.0),
    ...                  callback=jaxfit.callbacks.curve())
    step 2: loss 0.25, evaluation 0.25
    step 4: loss 0.01562, evaluation 0.0625
    """

    def begin() -> Callable[[Scalars], None]:
        curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        handle: Any = None

        def log(seen: Scalars) -> None:
            nonlocal handle
            at = np.array([seen.step])
            columns = {name: (seen.steps, values) for name, values in seen.rows.items()}
            columns |= {name: (at, value[None]) for name, value in seen.evaluation.items()}
            chosen = names or [name for name in columns if _is_loss(name)]
            if not chosen or not columns.keys() >= set(chosen):
                raise ValueError(
                    f"callbacks.curve was to draw {', '.join(chosen) or 'losses'}, but the scalars "
                    f"are {', '.join(columns) or 'none'}: name some of them, as in "
                    f"curve({next(iter(columns), 'loss')!r})."
                )
            for name in chosen:
                curves.setdefault(name, []).append(columns[name])
            last = ", ".join(f"{name} {columns[name][1][-1]:.4g}" for name in chosen)
            handle = show(f"step {seen.step}: {last}", curves, handle)

        return log

    return logs(begin)


def _is_loss(name: str) -> bool:
    return name == "evaluation" or name.rpartition("/")[2] == "loss"


def _imported(name: str, *libraries: str) -> Any:
    """Import the first of some libraries that is there; they are optional, and slow to import."""
    for library in libraries:
        try:
            return importlib.import_module(library)
        except ImportError as error:
            reason = error
    raise ImportError(
        f"callbacks.{name} needs {' or '.join(libraries)}: pip install {libraries[0]}."
    ) from reason


def _begin_file(path: pathlib.Path, header: list[str], first: int, number: int) -> None:
    """Write the header of a file; or, if it is there, remove the lines from a step on.

    Args:
      path: the file.
      header: the names of its columns.
      first: the step. The evaluation at it belongs to the steps before.
      number: how many columns are of rows; they come after the step.
    """
    if not path.exists() or not path.stat().st_size:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer(file, lineterminator="\n").writerow(header)
        return
    with path.open("r+b") as file:
        line = file.readline()
        found = next(reader([line.decode()]))
        if found != header:
            raise ValueError(
                f"{path} has the columns {', '.join(found)}, but this run has "
                f"{', '.join(header)}: give another path, or remove the file."
            )
        end = len(line)
        for line in file:
            step, *cells = line.rstrip(b"\n").split(b",")
            stays = int(step) < first or (int(step) == first and not any(cells[:number]))
            if not stays or not line.endswith(b"\n"):  # torn by the end of a process
                break
            end += len(line)
        file.truncate(end)

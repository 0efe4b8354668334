"""The training loop: a pure function from a loss to the whole trajectory.

Read this file first. `State` is where a run stands, `Step` is everything one step saw and did,
`Run` is a finished run. `train` is a ``lax.scan`` over steps; there is nothing else behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _loops, _tree
from jaxfit._step import Problem, stepper
from jaxfit.record import whole
from jaxfit.run import Run, State, Step

__all__ = ["Run", "State", "Step", "init", "train"]


def init(params: Any, optimizer: Any) -> State:
    """The `State` before the first step.

    Args:
      params: a pytree. Its floating and complex leaves are trained, and Python floats among them
        become arrays; every other leaf rides along untouched.
      optimizer: an optax optimizer, or a rule as in `train`.

    Returns:
      ``State(step=0, params, opt_state)``.

    Raises:
      TypeError: if the optimizer is not one.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> jaxfit.init({"w": jnp.zeros(2), "b": 0.0}, optax.sgd(0.1)).params
    {'b': Array(0., dtype=float32), 'w': Array([0., 0.], dtype=float32)}
    """
    optimizer = _check.optimizer(optimizer)
    params = _tree.as_arrays(params)
    return State(jnp.asarray(np.int32(0)), params, optimizer.init(_tree.partition(params)[0]))


def train(
    loss: Callable[..., Any],
    params: Any,
    optimizer: Any,
    num_steps: int,
    *,
    data: Any = None,
    has_aux: bool = False,
    record: Callable[[Step], Any] = whole,
    record_every: int = 1,
    keyframe_every: int | None = None,
) -> Run:
    r"""Follow a loss downhill, and return the whole trajectory.

    One step is

    .. math::
      g_t = \nabla_p\, \ell(p_t, b_t), \qquad
      u_t, s_{t+1} = \mathrm{update}(g_t, s_t, p_t), \qquad
      p_{t+1} = p_t + u_t ,

    with :math:`b_t` the batch, :math:`s_t` the optimizer's state and *update* the optimizer's
    rule. A pure function, to be used inside ``jax.jit``, ``vmap``, ``grad``, ``jvp`` and
    ``shard_map``. It does not jit itself: wrap it, and only what you use of the result is
    computed.

    Args:
      loss: ``loss(params, batch) -> scalar``, or ``loss(params)`` when ``data`` is None; with
        ``has_aux`` it returns ``(scalar, aux)``.
      params: where to start: a pytree, of which floating and complex leaves are trained and all
        others ride along untouched; or a `State`, to go on exactly from there. With
        ``optax.lookahead`` it is ``optax.LookaheadParams``, and the loss sees its ``fast`` half.
      optimizer: an optax optimizer; or, for a rule without state, a function of
        ``(gradients, params)`` that returns what is to be added to the parameters
        (``optax.stateless``). Optimizers that need the value, the gradient or the loss itself
        (line searches, ``sam``, ``sophia``, …) are given them, on the step's own batch. L-BFGS
        that has converged can leave the optimum again, by the last bit of its line search, and end
        in NaN. `fit` ends such a run before, by a rule in ``fit(…, stop=…)``: where the norm of the
        gradient is small, or by ``jaxfit.stop.no_improvement``.
      num_steps: how many updates to make.
      data: what a step sees. A pytree of arrays ``[examples, …]``, all of which every step sees;
        or a function ``step -> batch`` of the step (int32 []), pure and traceable, such as
        ``jaxfit.minibatches`` makes. Anything a step needs, a dropout key too, comes in through
        the batch.
      has_aux: whether the loss returns ``(scalar, aux)``.
      record: a function of a `Step` that returns what to keep, a pytree of arrays and numbers; see
        ``jaxfit.record``.
      record_every: keep a row at the first step and every so many steps after it; rows that are
        not kept cost neither the recorder's time nor memory.
      keyframe_every: keep the whole `State` at the first step and every so many steps after it,
        a multiple of ``record_every``. Reverse-mode differentiation then stores these states and
        recomputes the steps between them: memory for T/k + k steps in the place of T. One that
        does not divide ``num_steps`` is compiled twice.

    Returns:
      A `Run`. Row t holds what belongs to the parameters before update t, so ``run.state`` is
      row ``num_steps``. If ``record_every`` or ``keyframe_every`` does not divide ``num_steps``,
      the last rows are joined to the others in a copy, which for a moment takes the memory of the
      trajectory once more.

      On the CPU, states and rows are the same to the last bit whatever is recorded, and however
      often, and however the run is cut into pieces, of a single step too: a step, its batch and a
      recorder are each compiled as a unit.

    Raises:
      TypeError, ValueError: before the loop is compiled, if the arguments do not fit together.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> def loss(a, batch):
    ...     x, y = batch
    ...     return jnp.mean((x @ a - y) ** 2)
    >>> x, y = jnp.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), jnp.array([1.0, 3.0, 5.0])
    >>> run = jaxfit.train(loss, jnp.zeros(2), optax.sgd(0.3), 100, data=(x, y))
    >>> run.trajectory["params"].shape, run.trajectory["loss"].shape
    ((100, 2), (100,))
    >>> run.state.params.round(3)
    Array([2., 1.], dtype=float32)
    """
    num_steps, record_every, keyframe_every = _check.lengths(
        num_steps, record_every, keyframe_every
    )
    _check.function("record", record, 1)
    _check.start(params, num_steps)
    run = stepper(Problem(loss, optimizer, data, has_aux), params)
    row_of = run.row_of(record)

    def row(state: State, number: int) -> tuple[State, Any]:
        """Take steps of which the first leaves a row: [1, …]."""
        after, info = run.take(state)
        return _loops.repeat(run.take, after, number - 1), _loops.lead(row_of(state, info))

    def rows(state: State, number: int) -> tuple[State, Any]:
        """Take steps, and stack the rows they leave: [rows, …]."""
        return _loops.blocks(row, state, number, record_every)

    def segment(state: State, number: int) -> tuple[State, Any]:
        """Take the steps after a keyframe, from which reverse-mode differentiation remakes them."""
        keyframe = _tree.pack(run.restore(state))
        # The steps are a loop already, so nothing can merge the second making with the first.
        remade = jax.checkpoint(lambda state: rows(state, number), prevent_cse=False)
        after, made = remade(state)
        return after, (_loops.lead(keyframe), made)

    if keyframe_every is None:
        state, trajectory = rows(run.state, num_steps)
        keyframes = None
    else:
        state, (keyframes, trajectory) = _loops.blocks(
            segment, run.state, num_steps, keyframe_every
        )
    steps = run.state.step + np.arange(0, num_steps, record_every, dtype=np.int32)
    resumed = isinstance(params, State)
    known = None if resumed else range(0, num_steps, keyframe_every or record_every)
    return Run(steps, _tree.unpack(trajectory), _tree.unpack(keyframes), run.restore(state), known)

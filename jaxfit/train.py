"""The training loop: a pure function from a loss to the whole trajectory.

Read this file first. A `State` is where a run stands, a `Step` is what one step saw and did, and a
`Run` is a finished run. `train` is a ``lax.scan`` over steps, and nothing else.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _loops, _tree
from jaxfit._loops import Steps
from jaxfit._problem import Problem, as_optimizer, check_start
from jaxfit._step import first_state, stepper
from jaxfit._types import Data, Evaluate, Loss, Optimizer, Params, PyTree, Recorder
from jaxfit.record import whole
from jaxfit.run import Run, State, Step

__all__ = ["Run", "State", "Step", "init", "train"]


def init(params: Params, optimizer: Optimizer, carry: PyTree = None) -> State:
    """Return the `State` before the first step.

    Args:
      params: a pytree. Its floating and complex arrays are trained. So are Python floats in dicts,
        lists, tuples and named tuples, where they become arrays; in a node of another type, such as
        an Equinox module, a Python number is a setting. All that is not trained rides along
        untouched.
      optimizer: an optax optimizer, or a rule as in `train`.
      carry: what the loss takes from step to step beside the parameters, as in `train`.

    Returns:
      ``State(step=0, params, opt_state, carry)``.

    Raises:
      TypeError: if the optimizer is not one.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> jaxfit.init({"w": jnp.zeros(2), "b": 0.0}, optax.sgd(0.1)).params
    {'b': Array(0., dtype=float32), 'w': Array([0., 0.], dtype=float32)}
    """
    optimizer = as_optimizer(optimizer)
    params = _tree.as_arrays(params)
    trained, _ = _tree.partition(params)
    carry = _tree.as_arrays(carry, _tree.is_array)
    return State(jnp.asarray(np.int32(0)), params, first_state(optimizer, trained), carry)


def train(
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
    keyframe_every: int | None = None,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
) -> Run:
    r"""Minimise a loss by gradient descent, and return the whole trajectory.

    One step is

    .. math::
      g_t = \nabla_p\, \ell(p_t, b_t), \qquad
      u_t, s_{t+1} = \mathrm{update}(g_t, s_t, p_t), \qquad
      p_{t+1} = p_t + u_t ,

    with :math:`b_t` the batch, :math:`s_t` the optimizer's state and *update* the optimizer's
    rule. A pure function, for use inside ``jax.jit``, ``vmap``, ``grad``, ``jvp`` and
    ``shard_map``. It is not compiled on its own: wrap it in ``jax.jit``, which computes only those
    parts of the result that are used.

    Args:
      loss: ``loss(params, batch) -> scalar``, or ``loss(params)`` if ``data`` is None; with
        ``has_aux`` it returns ``(scalar, aux)``.
      params: where to start: a pytree, whose floating and complex leaves are trained while all
        others ride along untouched; or a `State`, to go on from exactly there. With
        ``optax.lookahead`` it is ``optax.LookaheadParams``, and the loss sees its ``fast`` half.
      optimizer: an optax optimizer; or, for a rule without state, a function of
        ``(gradients, params)`` that returns what to add to the parameters (``optax.stateless``).
        Optimizers that need the value, the gradient or the loss itself (line searches, ``sam``,
        ``sophia``, …) are given them, on the step's own batch. A converged L-BFGS run can leave the
        optimum again, by the last bit of its line search, and end in NaN; use `fit` to end it
        early, by a rule in ``fit(…, stop=…)`` that looks at the norm of the gradient, or by
        ``jaxfit.stop.no_improvement``.
      num_steps: how many updates to make.
      data: what a step sees. A pytree of arrays ``[examples, …]``, all of which every step sees;
        or a function ``step -> batch`` of the step (int32 []), pure and traceable, such as
        ``jaxfit.minibatches`` makes. Anything else a step needs, such as a dropout key, is part of
        the batch.
      has_aux: whether the loss returns ``(scalar, aux)``.
      carry: what the loss takes from step to step beside the parameters: batch statistics, a random
        state, an environment, averaged parameters. A pytree of arrays, PRNG keys among them, whose
        shapes and dtypes stay. The loss is then ``loss(params, carry, batch) -> (scalar, carry)``,
        or ``(scalar, (carry, aux))`` with ``has_aux``, and ``loss(params, carry)`` without data. It
        is not trained; derivatives go through it. A `State` has its own.
      record: a function of a `Step` that returns what to keep, a pytree of arrays and numbers; see
        ``jaxfit.record``.
      record_every: the number of steps from one row to the next; the first row is that of the first
        step. Steps without a row take neither the recorder's time nor memory.
      keyframe_every: the number of steps from one keyframe to the next, a multiple of
        ``record_every``. A keyframe is a whole `State`; the first is that of the first step.
        Reverse-mode differentiation stores only the keyframes and recomputes the steps between
        them: with one every k steps, memory for T/k + k steps instead of T. If it does not divide
        ``num_steps``, the loss is compiled twice.
      evaluate: ``evaluate(state) -> pytree`` of arrays and numbers, such as a loss on other data.
        It is called with the `State` at every ``evaluate_every``-th step, the first included, and
        at the end. It stands outside the loop over steps, costs nothing in between, and changes no
        bit of the run.
      evaluate_every: the number of steps from one evaluation to the next, a multiple of
        ``record_every``. If there are keyframes, one of the two periods must divide the other.

    Returns:
      A `Run`. Row t holds what belongs to the parameters before update t, so ``run.state`` is
      row ``num_steps``. If ``record_every`` or ``keyframe_every`` does not divide ``num_steps``,
      the last rows are joined to the others in a copy, which for a moment takes the memory of the
      trajectory once more.

      On the CPU, states and rows have the same bits whatever is recorded and however often, and
      however the run is cut into pieces, down to single steps: a step, its batch and a recorder are
      each compiled as a unit.

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
    num_steps, record_every = _check.lengths(num_steps, record_every)
    keyframe_every = _check.period("keyframe_every", keyframe_every, record_every)
    evaluate_every = _check.period("evaluate_every", evaluate_every, record_every)
    _check.function("record", record, "step")
    _check.evaluation(evaluate, evaluate_every, keyframe_every)
    check_start(params, num_steps, carry)
    run = stepper(Problem(loss, optimizer, data, has_aux), params, carry)
    row_of = run.row_of(record)
    evaluation_of = None if evaluate is None else run.evaluation_of(evaluate)

    def row(state: State, number: int) -> tuple[State, PyTree]:
        """Take some steps, the first of which leaves a row: [1, …]."""
        after, info = run.take(state)
        end = _loops.repeat(run.take, after, number - 1)
        return end, {"trajectory": _loops.lead(row_of(state, info))}

    def rows(state: State, number: int) -> tuple[State, PyTree]:
        """Take some steps, and stack the rows they leave: [rows, …]."""
        return _loops.blocks(row, state, number, record_every)

    def with_evaluations(body: Steps) -> Steps:
        if evaluation_of is None or evaluate_every is None:
            return body
        return _loops.marked(body, evaluate_every, "evaluations", evaluation_of)

    def with_keyframes(body: Steps) -> Steps:
        if keyframe_every is None:
            return body

        def recomputed(state: State, number: int) -> tuple[State, PyTree]:
            """Take the steps after a keyframe; reverse-mode differentiation recomputes them."""
            # The steps are a loop already, so nothing can merge the recomputed ones with the first.
            steps = jax.checkpoint(lambda state: body(state, number), prevent_cse=False)
            after, kept = steps(state)
            return after, kept

        keyframe = lambda state: _tree.pack(run.restore(state))
        return _loops.marked(recomputed, keyframe_every, "keyframes", keyframe)

    if (keyframe_every or 0) > (evaluate_every or 0):
        take_all = with_keyframes(with_evaluations(rows))
    else:
        take_all = with_evaluations(with_keyframes(rows))
    state, kept = take_all(run.state, num_steps)

    def every(period: int | None) -> jax.Array:
        """Return the steps from the first on, a period apart."""
        return run.state.step + np.arange(0, num_steps, period, dtype=np.int32)

    known = range(0, num_steps, keyframe_every or record_every)
    made = Run(
        steps=every(record_every),
        trajectory=_tree.unpack(kept["trajectory"]),
        keyframes=_tree.unpack(kept.get("keyframes")),
        state=run.restore(state),
        _known_steps=None if isinstance(params, State) else known,
    )
    if evaluation_of is None:
        return made
    evaluated = kept["evaluations"], every(evaluate_every)
    last = evaluation_of(state), state.step
    appended = jax.tree.map(lambda rows, row: jnp.concatenate([rows, row[None]]), evaluated, last)
    evaluations, evaluated_steps = _tree.unpack(appended)
    return dataclasses.replace(made, evaluations=evaluations, evaluated_steps=evaluated_steps)

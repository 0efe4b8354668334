"""Define the contenders of ``single_run``: ways to make one training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import optax
from jax import lax

import jaxfit
from experiments.benchmarks._bench import Contender, jaxopt, optimistix, torch
from experiments.benchmarks._problems import Problem
from jaxfit.losses import mse, objective
from jaxfit.models import linear

LOOP_STEPS = 1_000  # of the Python loops, which are slow and whose time per step is constant


def sgd_by_hand(problem: Problem) -> Callable:
    """Return gradient descent written as a scan, without optax."""

    def fit(params, data):
        def step(params, _):
            loss, grads = jax.value_and_grad(problem.loss)(params, data)
            return params - 0.1 * grads, (params, loss)

        return lax.scan(step, params, length=problem.steps)

    return fit


def optax_by_hand(problem: Problem) -> Callable:
    """Return the training loop written as a scan, with optax."""

    def fit(params, data):
        def step(carry, _):
            params, opt_state = carry
            loss, grads = jax.value_and_grad(problem.loss)(params, data)
            updates, opt_state = problem.optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), (params, loss)

        carry = params, problem.optimizer.init(params)
        (params, _), rows = lax.scan(step, carry, length=problem.steps)
        return params, rows

    return fit


def by_jaxfit(problem: Problem) -> Callable:
    """Return ``jaxfit.train``, recording the parameters and the loss of every step."""

    def fit(params, data):
        run = jaxfit.train(
            problem.loss,
            params,
            problem.optimizer,
            problem.steps,
            data=data,
            record=lambda step: (step.params, step.loss),
        )
        return run.state.params, run.trajectory

    return fit


def by_jaxfit_end(problem: Problem) -> Callable:
    """Return ``jaxfit.train`` with only its end used, so that no trajectory is kept."""

    def fit(params, data):
        run = jaxfit.train(problem.loss, params, problem.optimizer, problem.steps, data=data)
        return run.state.params, run.state.step

    return fit


def by_optimistix(problem: Problem) -> Callable:
    """Return optimistix's minimiser, without a trajectory."""
    # Tolerances of zero are never met: the last update would have to be smaller than that.
    solver = optimistix.OptaxMinimiser(problem.optimizer, rtol=0.0, atol=0.0)

    def fit(params, data):
        solution = optimistix.minimise(
            problem.loss, solver, params, data, max_steps=problem.steps, throw=False
        )
        return solution.value, solution.stats["num_steps"]

    return fit


def by_jaxopt(problem: Problem) -> Callable:
    """Return jaxopt's solver, without a trajectory."""
    # A tolerance of zero would be met by a gradient of zero.
    solver = jaxopt.OptaxSolver(problem.loss, problem.optimizer, maxiter=problem.steps, tol=-1.0)

    def fit(params, data):
        params, state = solver.run(params, data)
        return params, state.iter_num

    return fit


def compiled(name: str, problem: Problem, fit: Callable) -> Contender:
    """Return a contender that runs a jitted function of parameters and data."""
    jitted = jax.jit(fit)

    def run():
        return jax.block_until_ready(jitted(problem.params, problem.data))

    return Contender(name, problem.steps, run)


def python_loop(problem: Problem) -> Contender:
    """Return a contender that calls a jitted step from a Python loop."""

    @jax.jit
    def step(params, opt_state, data):
        loss, grads = jax.value_and_grad(problem.loss)(params, data)
        updates, opt_state = problem.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    steps = min(problem.steps, LOOP_STEPS)

    def run():
        params, opt_state, rows = problem.params, problem.optimizer.init(problem.params), []
        for _ in range(steps):
            before = params
            params, opt_state, loss = step(params, opt_state, problem.data)
            rows.append((before, loss))
        return jax.block_until_ready((params, rows))

    return Contender("jitted optax step in a Python loop", steps, run)


def torch_eager(problem: Problem) -> Contender:
    """Return a contender that trains with PyTorch, eagerly."""
    start = [torch.tensor(np.asarray(leaf)) for leaf in jax.tree.leaves(problem.params)]
    data = [torch.tensor(np.asarray(leaf)) for leaf in problem.data]
    steps = min(problem.steps, LOOP_STEPS)

    def run():
        params, rows = [leaf.clone().requires_grad_() for leaf in start], []
        optimizer = problem.torch_optimizer(params)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = problem.torch_loss(params, data)
            loss.backward()
            # PyTorch writes the new parameters over the old ones.
            rows.append(([leaf.detach().clone() for leaf in params], loss.detach()))
            optimizer.step()
        return [leaf.detach() for leaf in params], rows

    return Contender("PyTorch eager", steps, run)


def contend(problem: Problem) -> list[Contender]:
    """Return all contenders for a problem; the others are compared with the first."""
    fits = {"lax.scan by hand, optax": (problem, optax_by_hand)}
    if problem.name == "line":
        ours = dataclasses.replace(problem, loss=objective(linear, mse))
        fits = {"lax.scan by hand, x @ a": (problem, sgd_by_hand), **fits}
        fits["jaxfit.train, the same loss"] = problem, by_jaxfit
        fits["lax.scan by hand, jaxfit's linear and mse"] = ours, sgd_by_hand
        fits["jaxfit.train, jaxfit's linear and mse"] = ours, by_jaxfit
        fits["jaxfit.train, no trajectory"] = problem, by_jaxfit_end
        if optimistix:
            fits["optimistix OptaxMinimiser, no trajectory"] = problem, by_optimistix
        if jaxopt:
            fits["jaxopt OptaxSolver, no trajectory"] = problem, by_jaxopt
    else:
        fits["jaxfit.train"] = problem, by_jaxfit
    loops = [python_loop(problem), *([torch_eager(problem)] if torch else [])]
    return [compiled(name, task, by(task)) for name, (task, by) in fits.items()] + loops


def check(contenders: list[Contender], tolerance: float) -> None:
    """Raise an AssertionError unless all contenders do the work of the first.

    Their runs return the final parameters and what they kept: ``(params, loss)`` of every step,
    stacked or as a list of rows, or only the number of steps, without a trajectory.
    """

    def same(name, actual, expected):
        for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=name)

    last, (path, losses) = contenders[0].run()
    # The parameters before every step and after the last: [steps + 1, …].
    path = jax.tree.map(lambda rows, end: np.concatenate([rows, end[None]]), path, last)
    for contender in contenders:
        n = contender.steps
        params, kept = contender.run()
        same(contender.name, params, jax.tree.map(lambda rows, n=n: rows[n], path))
        if isinstance(kept, list):
            kept = jax.tree.map(lambda *rows: np.stack(rows), *kept)
        known = jax.tree.map(lambda rows, n=n: rows[:n], (path, losses))
        same(contender.name, kept, known if isinstance(kept, tuple) else n)

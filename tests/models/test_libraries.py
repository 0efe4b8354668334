"""Models of other libraries are trained as by these libraries' own loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.common import assert_close


@pytest.mark.slow
def test_a_neural_ode_is_the_loop_of_diffrax_example():
    pytest.importorskip("diffrax")
    from experiments.models import neural_ode

    field = neural_ode.Field(jax.random.key(0))
    times, curves = jnp.linspace(0.0, 1.0, 5), 0.1 * jnp.arange(160.0).reshape(16, 5, 2) % 1
    run = neural_ode.train(field, times, curves, 4)

    optimizer = optax.adabelief(3e-3)
    opt_state = optimizer.init(eqx.filter(field, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(field, opt_state):
        def objective(field):
            solve = lambda start: neural_ode.solve(field, times, start)
            return jnp.mean((jax.vmap(solve)(curves[:, 0]) - curves) ** 2)

        loss, grads = eqx.filter_value_and_grad(objective)(field)
        updates, opt_state = optimizer.update(grads, opt_state)
        return loss, eqx.apply_updates(field, updates), opt_state

    losses = []
    for _ in range(4):
        loss, field, opt_state = step(field, opt_state)
        losses.append(loss)
    np.testing.assert_allclose(run.trajectory["loss"], losses, rtol=1e-4)


@pytest.mark.slow
def test_variational_inference_is_svi_run():
    pytest.importorskip("numpyro")
    from experiments.models import variational

    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)), jnp.float32)
    data, svi = (x, x @ jnp.array([1.0, -2.0])), variational.make()
    run = variational.train(svi, jax.random.key(0), data, 10)
    expected = svi.run(jax.random.key(0), 10, *data, progress_bar=False)
    np.testing.assert_allclose(run.trajectory["loss"], expected.losses, rtol=1e-4)
    assert_close(svi.constrain_fn(run.state.params), expected.params, rtol=1e-3, atol=1e-4)


def test_a_gaussian_process_is_gpjax_fit():
    pytest.importorskip("gpjax", reason="GPJax needs jax < 0.11", exc_type=ImportError)
    from gpjax import fit

    from experiments.models import gaussian_process as gp

    with jax.enable_x64(True):
        model, data = gp.make(), gp.wave(jax.random.key(0), 20)
        run = gp.train(model, data, 10)
        options = {"optim": optax.adam(0.05), "num_iters": 10, "verbose": False}
        expected, losses = fit(model=model, objective=gp.loss, train_data=data, **options)
    np.testing.assert_allclose(run.trajectory["loss"], losses, rtol=1e-9)
    arrays = lambda tree: jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    assert_close(arrays(run.state.params), arrays(expected), rtol=1e-9)


def test_trials_of_optuna_are_told_what_each_gives_alone():
    optuna = pytest.importorskip("optuna")
    from experiments.models import search_optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = search_optuna.search(1, at_once=4, rounds=2)
    assert len(study.trials) == 8
    alone = jax.jit(search_optuna.held_out_loss)
    for trial in study.trials:
        point = {name: jnp.float32(value) for name, value in trial.params.items()}
        if trial.value is None:
            assert not np.isfinite(alone(point))
        else:
            np.testing.assert_allclose(trial.value, alone(point), rtol=1e-3)

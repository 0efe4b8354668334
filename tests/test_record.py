"""The ready-made recorders keep the same as a recorder that keeps everything."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import record
from tests.common import assert_close, assert_same_bits, guess, loss, row

TARGET = jnp.array([1.0 + 2.0j, -3.0j])


def mixed_loss(params):
    """Return a loss of complex and real leaves, and of one that is not trained."""
    distance = jnp.abs(params["z"] - TARGET) ** 2
    return jnp.sum(distance) + jnp.sum((params["w"][params["order"]] - jnp.arange(3.0)) ** 2)


def mixed_start():
    return {
        "z": jnp.array([2.0 - 1.0j, 1.0 + 1.0j]),
        "w": jnp.array([4.0, 5.0, 6.0]),
        "order": jnp.array([2, 0, 1]),
    }


def norms(tree, rows):
    """Return the Euclidean norm of every row over all leaves together, in float64."""
    flat = [np.reshape(leaf, (rows, -1)) for leaf in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(flat, axis=1).astype(np.complex128), axis=1)


def test_metrics_are_the_norms_of_all_trained_leaves_together():
    def run(keep):
        return jaxfit.train(mixed_loss, mixed_start(), optax.sgd(0.1), 6, record=keep).trajectory

    kept, rows = run(record.metrics), run(lambda step: step)
    trained = {name: rows.params[name] for name in ("z", "w")}
    assert set(kept) == {"step", "loss", "grad_norm", "update_norm", "param_norm"}
    assert all(kept[name].shape == (6,) and jnp.isrealobj(kept[name]) for name in kept)
    assert_same_bits((kept["step"], kept["loss"]), (rows.step, rows.loss))
    np.testing.assert_allclose(kept["grad_norm"], norms(rows.grads, 6), rtol=1e-6)
    np.testing.assert_allclose(kept["update_norm"], norms(rows.updates, 6), rtol=1e-6)
    np.testing.assert_allclose(kept["param_norm"], norms(trained, 6), rtol=1e-6)
    np.testing.assert_allclose(kept["update_norm"], 0.1 * kept["grad_norm"], rtol=1e-5)


def test_a_row_of_states_goes_back_into_train():
    run = lambda start, num_steps: jaxfit.train(
        mixed_loss, start, optax.sgd(0.05, momentum=0.9), num_steps, record=record.state
    )
    whole = run(mixed_start(), 8)
    third = row(whole.trajectory, 3)
    assert isinstance(third, jaxfit.State) and third.step == 3
    again = run(third, 5)
    assert_same_bits(again.state, whole.state)
    assert_same_bits(again.trajectory, row(whole.trajectory, slice(3, None)))
    np.testing.assert_array_equal(again.steps, np.arange(3, 8))


def test_whole_keeps_the_parameters_and_the_loss_at_them(line):
    kept = jaxfit.train(loss, guess, optax.sgd(0.1), 4, data=line, record=record.whole).trajectory
    assert set(kept) == {"step", "params", "loss"}
    np.testing.assert_array_equal(kept["step"], np.arange(4))
    np.testing.assert_array_equal(kept["params"][0], guess)
    assert_close(kept["loss"], jax.vmap(loss, (0, None))(kept["params"], line))


@pytest.mark.parametrize("record_every", [1, 3])
def test_whole_keeps_what_the_loss_returned_beside_its_value(line, record_every):
    def with_aux(params, batch):
        x, y = batch
        residuals = x @ params - y
        return jnp.mean(residuals**2), {"residuals": residuals, "worst": jnp.max(residuals)}

    kept = jaxfit.train(
        with_aux, guess, optax.sgd(0.1), 7, data=line, has_aux=True, record_every=record_every
    ).trajectory
    assert set(kept) == {"step", "params", "loss", "aux"}
    value, aux = jax.vmap(with_aux, (0, None))(kept["params"], line)
    assert aux["residuals"].shape == (len(range(0, 7, record_every)), 100)
    assert_close((kept["loss"], kept["aux"]), (value, aux))

"""Loops with several networks, runs or rates, and the table's lines, end where the originals do."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from experiments.models import distillation, early_stopping, gan, k_fold, population
from jaxfit.losses import cross_entropy, l2, mse, objective
from jaxfit.models import linear, mlp, mlp_init
from tests.common import assert_close, row

X = np.random.default_rng(0).normal(size=(96, 8)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 96)
BATCHES = jaxfit.minibatches((X, Y), 16, jax.random.key(2))
layer = lambda m, n: [{"w": jnp.asarray(X[:m, :n]), "b": jnp.zeros(n)}]  # one compiles fastest
PARAMS = layer(8, 3)
loss = objective(mlp, cross_entropy)
batch = jax.jit(lambda step: BATCHES(step))
near = lambda one, other: assert_close(one, other, rtol=1e-3, atol=1e-4)


def descend(loss, optimizer, params, batches):
    """The loop of optax's own introduction."""

    @jax.jit
    def step(params, opt_state, batch):
        grads = jax.grad(loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for batch in batches:
        params, opt_state = step(params, opt_state, batch)
    return params


@pytest.mark.parametrize("train", [gan.train_at_once, gan.train_in_turn])
def test_a_gan_has_two_optimizers_as_in_two_loops(train):
    params = {"discriminator": layer(2, 1), "generator": layer(2, 2)}
    points, key = jnp.asarray(X[:, :2]), jax.random.key(3)
    run = jax.jit(train, static_argnums=3)(params, points, key, 12)

    adam = optax.adam(2e-3, b1=0.5)
    one, other = params.values()
    states = [adam.init(one), adam.init(other)]
    batch = jax.jit(lambda t: jaxfit.minibatches(points, 64, key)(t))
    draw = jax.jit(lambda t: jax.random.normal(jax.random.fold_in(key, t), (64, 2)))

    def sigmoid_loss(network, points, sign):
        return jnp.mean(jnp.log1p(jnp.exp(-sign * mlp(network, points))))

    @jax.jit
    def discriminate(one, other, state, points, noise):
        objective = lambda one: (
            sigmoid_loss(one, points, 1) + sigmoid_loss(one, mlp(other, noise), -1)
        )
        updates, state = adam.update(jax.grad(objective)(one), state)
        return optax.apply_updates(one, updates), state

    @jax.jit
    def generate(one, other, state, noise):
        objective = lambda other: sigmoid_loss(one, mlp(other, noise), 1)
        updates, state = adam.update(jax.grad(objective)(other), state)
        return optax.apply_updates(other, updates), state

    if train is gan.train_at_once:
        for t in range(12):
            moved, states[0] = discriminate(one, other, states[0], batch(t), draw(t))
            other, states[1] = generate(one, other, states[1], draw(t))
            one = moved
    else:
        for t in range(6):
            one, states[0] = discriminate(one, other, states[0], batch(t), draw(2 * t))
            other, states[1] = generate(one, other, states[1], draw(2 * t + 1))
    near(run.state.params, {"discriminator": one, "generator": other})


def test_early_stopping_ends_in_the_epoch_and_at_the_parameters_of_the_usual_loop():
    held_out = 2 * X, Y  # on which the model is soon too sure
    start = jax.tree.map(jnp.zeros_like, PARAMS)
    run, best = early_stopping.train(start, BATCHES, held_out, epochs=30, patience=3)

    optimizer = optax.adam(0.01)
    params = start
    opt_state, validate = optimizer.init(params), jax.jit(loss)

    @jax.jit
    def step(params, opt_state, batch):
        updates, opt_state = optimizer.update(jax.grad(loss)(params, batch), opt_state)
        return optax.apply_updates(params, updates), opt_state

    values, kept, waited, t = [validate(params, held_out)], params, 0, 0
    while waited < 3 and t < 30 * BATCHES.steps_per_epoch:
        for _ in range(BATCHES.steps_per_epoch):
            params, opt_state = step(params, opt_state, batch(t))
            t += 1
        value = validate(params, held_out)
        if value < min(values):
            kept, waited = params, 0
        else:
            waited += 1
        values.append(value)
    assert 0 < int(best.step) < int(run.state.step) == t < 180
    np.testing.assert_allclose(run.evaluations["loss"], values, rtol=1e-4)
    near(run.state.params, params)
    near(best.params, kept)


def test_cross_validation_is_a_loop_over_penalties_and_folds():
    x, y = jnp.asarray(X[:48, :3]), X[:48, 3]
    penalties, key = jnp.array([0.01, 1.0]), jax.random.key(3)
    found = k_fold.cross_validate((x, jnp.asarray(y)), penalties, 4, key, 20).values

    folds = np.array_split(np.asarray(jax.random.permutation(key, 48)), 4)
    for i, penalty in enumerate(penalties):
        for j, test in enumerate(folds):
            train = np.setdiff1d(np.arange(48), test)
            a = np.zeros(3)
            for _ in range(20):
                a = a - 0.1 * (2 * x[train].T @ (x[train] @ a - y[train]) / 36 + penalty * a)
            np.testing.assert_allclose(
                found[i, j], np.mean((x[test] @ a - y[test]) ** 2), rtol=1e-4
            )


def test_distillation_is_the_loop_whose_loss_calls_the_teacher():
    teacher, student = PARAMS, [{"w": jnp.asarray(X[8:16, :3]), "b": jnp.zeros(3)}]
    train = jax.jit(distillation.train, static_argnums=4)
    run = train(teacher, student, (X, Y), jax.random.key(2), 12)

    def by_hand(student, batch):
        x, y = batch
        logits, T = mlp(student, x), distillation.TEMPERATURE
        log_p, q = jax.nn.log_softmax(logits / T), jax.nn.softmax(mlp(teacher, x) / T)
        hard = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return 0.1 * hard - 0.9 * T**2 * (q * log_p).sum(axis=1).mean()

    batch = jax.jit(lambda t: jaxfit.minibatches((X, Y), 64, jax.random.key(2))(t))
    near(run.state.params, descend(by_hand, optax.adam(0.01), student, map(batch, range(12))))


def test_a_population_evolves_as_in_loops_over_rounds_and_members():
    rates, key = np.array([1e-4, 0.01, 0.1, 5.0]), jax.random.key(3)
    make = lambda rate: population.with_rate(jaxfit.init(PARAMS, population.optimizer), rate)
    states = jax.vmap(make)(jnp.asarray(rates, jnp.float32))
    run = jax.jit(population.train, static_argnums=(4, 5))
    states, history = run(states, BATCHES, (X, Y), key, 3, 4)

    members = [[PARAMS, None] for _ in rates]
    grad, validate = jax.jit(jax.grad(loss)), jax.jit(loss)
    for number, draw in enumerate(jax.random.split(key, 3)):
        for member, rate in zip(members, rates, strict=True):
            for t in range(4 * number, 4 * number + 4):
                params, trace = member
                grads = grad(params, batch(t))
                if trace is not None:
                    grads = jax.tree.map(lambda g, m: g + 0.9 * m, grads, trace)
                params = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, grads)
                member[:] = params, grads
        losses = [float(validate(params, (X, Y))) for params, _ in members]
        np.testing.assert_allclose(history["loss"][number], losses, rtol=1e-3)
        np.testing.assert_allclose(history["rate"][number], rates, rtol=1e-5)
        worst, best = np.argmax(losses), np.argmin(losses)
        members[worst][:] = members[best]
        rates[worst] = rates[best] * (0.8 if jax.random.bernoulli(draw, shape=(1,))[0] else 1.25)
    assert 5.0 not in rates
    for number, (params, _) in enumerate(members):
        near(row(states.params, number), params)


# The table's lines.


def test_multisteps_is_the_loop_that_adds_up_gradients():
    run = jax.jit(
        lambda: jaxfit.train(loss, PARAMS, optax.MultiSteps(optax.adam(0.01), 4), 12, data=BATCHES)
    )()
    join = lambda *parts: jnp.concatenate(parts)
    four = [jax.tree.map(join, *map(batch, range(t, t + 4))) for t in (0, 4, 8)]
    near(run.state.params, descend(loss, optax.adam(0.01), PARAMS, four))


def test_a_dropout_key_in_the_batch_is_the_loop_that_folds_in_the_step():
    key = jax.random.key(4)

    def dropout(params, batch):
        (x, y), key = batch
        return loss(params, (x * jax.random.bernoulli(key, 0.8, x.shape) / 0.8, y))

    data = lambda step: (BATCHES(step), jax.random.fold_in(key, step))
    run = jax.jit(lambda: jaxfit.train(dropout, PARAMS, optax.adam(0.01), 8, data=data))()
    pairs = [(batch(t), jax.random.fold_in(key, t)) for t in range(8)]
    near(run.state.params, descend(dropout, optax.adam(0.01), PARAMS, pairs))


def test_mixed_precision_is_a_cast_at_both_ends_of_the_loss():
    half = lambda tree: optax.tree.cast(tree, jnp.bfloat16)
    mixed = lambda params, batch: loss(half(params), (half(batch[0]), batch[1])).astype(jnp.float32)
    run = jax.jit(lambda: jaxfit.train(mixed, PARAMS, optax.sgd(0.1), 8, data=BATCHES))()
    expected = descend(mixed, optax.sgd(0.1), PARAMS, map(batch, range(8)))
    assert_close(run.state.params, expected, rtol=1e-2, atol=2e-3)
    assert run.state.params[0]["w"].dtype == jnp.float32


def test_an_ensemble_is_a_loop_over_keys():
    keys = jax.random.split(jax.random.key(5), 3)

    def member(key):
        start, order = jax.random.split(key)
        batches = jaxfit.minibatches((X, Y), 16, order)
        return jaxfit.train(loss, mlp_init(start, (8, 3)), optax.sgd(0.1), 6, data=batches)

    runs = jax.jit(jax.vmap(member))(keys)
    batch_of = jax.jit(lambda order, step: jaxfit.minibatches((X, Y), 16, order)(step))
    draw = jax.jit(lambda key: mlp_init(key, (8, 3)))
    for number, key in enumerate(keys):
        start, order = jax.random.split(key)
        batches = [batch_of(order, t) for t in range(6)]
        near(row(runs.state.params, number), descend(loss, optax.sgd(0.1), draw(start), batches))


def test_lbfgs_to_a_tolerance_stops_where_the_loop_with_the_same_test_does():
    ridge = lambda a, batch: mse(linear(a, batch[0]), batch[1]) + 0.1 * l2(a)
    search = optax.scale_by_backtracking_linesearch(20)  # compiles faster than the default
    data, solver, a = (X, X[:, 0] ** 2), optax.lbfgs(linesearch=search), jnp.zeros(8)
    stop = jaxfit.stop.gradient_below(1e-3)
    run = jaxfit.fit(ridge, a, solver, 100, data=data, stop=stop, progress=False)

    @jax.jit
    def step(a, state):
        value, grad = jax.value_and_grad(ridge)(a, data)
        updates, after = solver.update(
            grad, state, a, value=value, grad=grad, value_fn=lambda a: ridge(a, data)
        )
        return optax.apply_updates(a, updates), after, jnp.linalg.norm(grad)

    state, count = solver.init(a), 0
    while True:
        moved, state, norm = step(a, state)
        if norm < 1e-3:
            break
        a, count = moved, count + 1
    assert int(run.state.step) == count > 2
    np.testing.assert_allclose(run.state.params, a, rtol=1e-3, atol=1e-4)
    exact = np.linalg.solve(X.T @ X / 96 + 0.05 * np.eye(8), X.T @ data[1] / 96)
    np.testing.assert_allclose(run.state.params, exact, atol=1e-2)


def test_the_table_names_every_file_and_every_link_leads_somewhere():
    folder = pathlib.Path(gan.__file__).parent
    text = (folder / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    for link in links:
        assert link.startswith("http") or (folder / link).exists(), link
    files = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    assert files <= set(links)

"""What first made an infinity or a NaN is named, and nothing that was harmless."""

import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import Blame

sgd = optax.sgd(0.1)


def blame(loss, params, optimizer=sgd, **kwargs):
    return jaxfit.blame(loss, jaxfit.init(params, optimizer), optimizer, **kwargs)


def line(function, offset=0):
    """A line of a function, as a `Blame` names it."""
    return f"test_blame.py:{function.__code__.co_firstlineno + offset} ({function.__name__})"


def assert_blames(found, leaf, primitive, where, made=None):
    assert (found.leaf, found.primitive, found.where) == (leaf, primitive, where), str(found)
    assert made in (None, found.made), str(found)


def test_end_to_end_with_fit_and_the_sentence():
    def loss(params, x):
        shifted = params["w"] - x.mean()
        return jnp.sum(jnp.log(shifted))

    start, x = {"w": jnp.array([2.0, 4.0]), "name": "net", "n": 3}, jnp.ones(4)
    optimizer = optax.sgd(0.7)
    stop = jaxfit.stop.not_finite
    run = jaxfit.fit(loss, start, optimizer, 9, data=x, stop=stop, progress=False)
    assert run.stop_reason
    found = jaxfit.blame(loss, run.state, optimizer, data=x)
    assert found == Blame(2, "loss", "nan", "log", line(loss, 2), "nan", "finite numbers")
    assert str(found) == (
        f"step 2: the loss is nan; log at {line(loss, 2)} was the first to make nan of finite "
        f"numbers."
    )
    # Two steps before it, nothing was wrong.
    assert blame(loss, start, optimizer, data=x).leaf is None


def test_nothing_is_bad():
    found = blame(lambda a: a**2, 1.0, optax.adam(0.1))
    assert found == Blame(0)
    assert "finite when computed operation by operation" in str(found)


def test_jaxs_own_search_for_nans_does_not_interfere():
    loss = lambda a: jnp.log(a)
    state = jaxfit.init(-1.0, sgd)
    with jax.debug_nans(True):
        assert jaxfit.blame(loss, state, sgd).primitive == "log"


zero_by_zero = lambda a: (a - a) / (a - a)
overflow = lambda a: jnp.exp(100.0 * a)


@pytest.mark.parametrize(
    ("loss", "primitive", "made"), [(zero_by_zero, "div", "nan"), (overflow, "exp", "inf")]
)
def test_one_operation(loss, primitive, made):
    assert_blames(blame(loss, 1.0), "loss", primitive, line(loss), made)


def test_a_product_of_vectors_has_the_name_that_jax_gives_it():
    loss = lambda a: (1e30 * a) @ (1e30 * a)
    assert_blames(blame(loss, jnp.ones(3)), "loss", "dot_general", line(loss), "inf")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e5m2", "complex64"])
def test_dtypes(dtype):
    loss = lambda a: jnp.log(a.astype(dtype) if dtype != "complex64" else a).real.astype("float32")
    start = jnp.zeros((), dtype if dtype != "float8_e5m2" else "float32")
    assert_blames(blame(loss, start), "loss", "log", line(loss))


@pytest.mark.parametrize("dtype", ["bfloat16", "complex64"])
def test_what_went_through_the_tie_of_gradients_and_updates(dtype):
    def rule(grads, params):
        return jax.tree.map(lambda g: g / (g - g), grads)

    found = blame(lambda a: jnp.abs(a).astype("float32"), jnp.ones((), dtype), rule)
    assert (found.leaf, found.primitive) == ("updates", "div")
    assert found.where == line(rule, 1).replace("(rule)", "(<lambda>)")


def test_gradient_of_sqrt_at_zero():
    loss = lambda params: jnp.sum(jnp.sqrt(params["w"]))
    found = blame(loss, {"b": 0.0, "w": jnp.array([0.0, 1.0])})
    assert_blames(found, "grads['w']", "div", line(loss), "inf")


def test_gradient_through_where():
    loss = lambda a: jnp.where(a > 0, jnp.sqrt(a), 0.0)
    found = blame(loss, 0.0)
    assert_blames(found, "grads", "div", line(loss), "inf")
    assert found.value == "nan"  # zero times the infinity


def test_update_of_an_optimizer():
    found = blame(lambda a: (a[0] - 1) ** 2, [0.0], optax.scale(jnp.inf))
    assert (found.leaf, found.primitive) == ("updates[0]", None)
    assert str(
        found
    ) == "step 0: updates[0] holds -inf, which comes from a constant that is not " + ("finite.")
    found = blame(lambda a: (a[0] - 1) ** 2, [0.0], optax.chain(optax.scale(1e38), optax.scale(9)))
    assert (found.leaf, found.primitive, found.made) == ("updates[0]", "mul", "-inf")
    assert found.where.startswith("optax/_src/transform.py:")


def test_scan_goes_bad_at_the_third_iteration():
    def body(carry, x):
        y = jnp.log(x - carry)
        return 0.0 * carry, y

    loss = lambda a, x: jnp.sum(jax.lax.scan(body, a, x[::-1], reverse=True)[1])
    found = blame(loss, 1e-3, data=jnp.array([1.0, 2.0, 0.0, 3.0]))
    assert_blames(found, "loss", "log", line(body, 1), "-inf")


def test_harmless_iterations_of_a_scan():
    def body(carry, x):
        best, total = carry
        best = jnp.maximum(best, jnp.where(x == 2, jnp.log(0 * x), x))
        return (best, total + jnp.sqrt(1.5 - x)), None

    def loss(a):
        first = (-jnp.inf, a)
        return sum(jax.lax.scan(body, first, jnp.arange(3.0))[0])

    assert_blames(blame(loss, 0.5), "loss", "sqrt", line(body, 3), "nan")


def test_gradient_of_a_scan():
    body = lambda carry, x: (jnp.sqrt(carry - x), None)
    loss = lambda a: jax.lax.scan(body, a, jnp.array([0.0, 2.0]))[0]
    found = blame(loss, 4.0)
    assert_blames(found, "grads", "div", line(body), "inf")


def test_while_and_cond():
    def body(carry):
        step, a = carry
        return step + 1, jnp.log(a)

    def loss(a):
        turned = jax.lax.cond(a < 3, lambda a: jnp.log(-a), lambda a: a, a)
        return jax.lax.while_loop(lambda carry: carry[0] < 4, body, (0, turned))[1] + 0 * a

    # while_loop has no gradient in reverse, and a tangent of its own.
    forward = jax.custom_vjp(loss)
    forward.defvjp(lambda a: (loss(a), None), lambda _, g: (g,))
    assert_blames(blame(forward, 3.0), "loss", "log", line(body, 2), "nan")
    branch = line(loss, 1).replace("(loss)", "(<lambda>)")
    assert_blames(blame(forward, 2.0), "loss", "log", branch, "nan")


def test_a_loop_that_is_recomputed_for_the_gradient():
    body = lambda i, a: a - jnp.sqrt(1.0 - i)
    found = blame(jax.checkpoint(lambda a: jax.lax.fori_loop(0, 4, body, a)), 3.0)
    assert_blames(found, "loss", "sqrt", line(body), "nan")


@jax.jit
def jitted(a):
    return jnp.log(a)


@jax.custom_jvp
def with_jvp(a):
    return jnp.log(a)


with_jvp.defjvp(lambda primals, tangents: (jnp.log(primals[0]), tangents[0]))


def test_inside_of_other_transformations():
    remat = jax.checkpoint(lambda a: jnp.log(a))
    found = blame(lambda a: remat(a), -1.0)
    assert (found.primitive, found.where) == ("log", line(remat.__wrapped__))
    found = blame(lambda a: jitted(a), -1.0)
    assert (found.primitive, found.where) == ("log", line(jitted.__wrapped__, 2))
    found = blame(lambda a: with_jvp(a), -1.0)
    assert (found.leaf, found.primitive) == ("loss", "log")
    loss = lambda a: jax.nn.softplus(a) * jax.nn.logsumexp(jnp.exp(jnp.stack([a, 2 * a])))
    assert_blames(blame(loss, 80.0), "loss", "exp", line(loss), "inf")


def test_harmless_infinities_are_not_blamed():
    def loss(a, mask):
        scores = jnp.where(mask, a, -jnp.inf)
        unused = 1 / (0 * a.sum())
        total = jax.nn.logsumexp(scores) + jnp.where(mask, scores, unused).sum(where=mask)
        chosen = jnp.where(mask, jnp.log(a - 1), unused * jnp.ones(3))
        return total + jnp.where(~mask, 0.0, chosen).sum()

    masked = lambda a, mask: jax.nn.logsumexp(jnp.where(mask, a, -jnp.inf))
    mask = jnp.array([True, False, True])
    assert blame(masked, jnp.ones(3), data=mask).leaf is None
    # An infinity in an element that is never chosen, beside a NaN in one that is.
    found = blame(loss, jnp.zeros(3), data=jnp.ones(3, bool))
    assert_blames(found, "loss", "log", line(loss, 4), "nan")


def test_a_row_masked_as_a_whole():
    loss = lambda a: jax.nn.softmax(jnp.where(jnp.zeros(3, bool), a, -jnp.inf))[0]
    found = blame(loss, jnp.ones(3))
    assert_blames(found, "loss", "sub", line(loss), "nan")
    assert str(found).endswith("to make nan of constant infinities.")


def test_what_the_step_was_given():
    loss = lambda params, batch: jnp.sum(params["w"] * batch["x"])
    good, bad = {"w": jnp.ones(2)}, jnp.array([1.0, jnp.nan])
    found = blame(loss, good, data={"x": np.array(bad), "z": jnp.ones(2)})
    assert found == Blame(0, "batch['x']", "nan")
    assert str(found) == "step 0: batch['x'] holds nan before anything is computed."
    assert blame(loss, {"w": bad}, data={"x": jnp.ones(2)}).leaf == "params['w']"
    assert blame(loss, good, data=lambda step: {"x": bad}).leaf == "batch['x']"
    # A missing value that the loss leaves out is not what is wrong.
    careful = lambda params, batch: jnp.nansum(batch["x"]) + jnp.log(params["w"].sum() - 3)
    assert_blames(blame(careful, good, data={"x": bad}), "loss", "log", line(careful))

    data = lambda step: {"x": jnp.sqrt(step - jnp.ones(2))}
    found = blame(loss, good, data=data)
    assert_blames(found, "batch['x']", "sqrt", line(data), "nan")

    adam = optax.adam(0.1)
    state = jaxfit.init(good, adam)
    first = state.opt_state[0]._replace(mu={"w": bad})
    state = jaxfit.State(state.step + 5, state.params, (first, *state.opt_state[1:]))
    found = jaxfit.blame(loss, state, adam, data={"x": jnp.ones(2)})
    assert found == Blame(5, "opt_state[0].mu['w']", "nan")


def test_of_several_bad_leaves_the_one_that_matters_is_named():
    bad = jnp.array([1.0, jnp.nan])
    start = {"unused": bad, "w": jnp.ones(2)}
    loss = lambda params, batch: jnp.sum(params["w"] * batch["x"])
    assert blame(loss, start, data={"a": bad, "x": bad}).leaf == "batch['x']"
    fine = {"a": bad, "x": jnp.ones(2)}
    assert blame(loss, start, data=fine).leaf is None
    assert blame(loss, {"unused": bad, "w": bad[::-1]}, data=fine).leaf == "params['w']"


def test_a_state_of_numpy_arrays():
    factor = jnp.array(jnp.inf)
    loss = lambda params: params["w"] * factor
    state = jaxfit.init({"unused": jnp.nan, "w": 1.0}, sgd)
    found = jaxfit.blame(loss, jax.tree.map(np.asarray, state), sgd)
    assert (found.leaf, found.primitive) == ("loss", None)


def test_an_array_that_the_loss_closes_over():
    x = jnp.array([1.0, jnp.inf])
    found = blame(lambda a: jnp.sum(a * x), 1.0)
    assert (found.leaf, found.value, found.primitive) == ("loss", "inf", None)
    assert "from a constant that is not finite" in str(found)


def test_auxiliary_values_keys_and_line_searches():
    def loss(params, key):
        noise = jax.random.normal(key, (2,))
        return jnp.log(params["w"]) + 0 * noise.sum(), {"log": jnp.log(-1.0)}

    keys = lambda step: jax.random.fold_in(jax.random.key(0), step)
    found = blame(loss, {"w": -1.0}, data=keys, has_aux=True)
    assert_blames(found, "loss", "log", line(loss, 2), "nan")
    plain = lambda a: jnp.sum(jnp.log(a))
    assert_blames(
        blame(plain, -jnp.ones(2), optax.chain(sgd, optax.scale_by_backtracking_linesearch(3))),
        "loss",
        "log",
        line(plain),
        "nan",
    )


def test_library_code_is_named_by_the_users_line():
    predict = lambda a, x: jnp.exp(100 * a) * x
    loss = jaxfit.losses.objective(predict, jaxfit.losses.mse)
    found = blame(loss, 1.0, data=(jnp.ones(2), jnp.ones(2)))
    assert_blames(found, "loss", "exp", line(predict), "inf")
    found = blame(loss, 0.5, data=(jnp.ones(2), jnp.ones(2)))
    assert (found.leaf, found.value) == ("loss", "inf")
    assert found.where.startswith("jaxfit/losses.py:")
    mine = lambda a: optax.losses.squared_error(1e30 * a)
    assert_blames(blame(mine, 1.0), "loss", "integer_pow", line(mine), "inf")


SCRIPT = """
import jax.numpy as jnp
import jaxfit

def loss(a):
    return jnp.log(a)

def ask(loss, start, optimizer):
    return jaxfit.blame(loss, jaxfit.init(start, optimizer), optimizer)
"""


@pytest.mark.parametrize("name", ["_step.py", "_unit.py", "blame.py"])
def test_a_script_whose_folder_and_file_have_names_of_the_library(name, tmp_path):
    path = tmp_path / "jaxfit" / name
    path.parent.mkdir()
    path.write_text(SCRIPT)
    script = runpy.run_path(str(path))
    assert_blames(script["ask"](script["loss"], -1.0, sgd), "loss", "log", f"{name}:6 (loss)")
    # That the script asks for the blame does not make it a line of the optimizer.
    optimizer = optax.chain(optax.scale(1e38), optax.scale(9))
    found = script["ask"](lambda a: (a - 1) ** 2, 0.0, optimizer)
    assert found.primitive == "mul" and found.where.startswith("optax/_src/transform.py:")


def test_no_line_is_named_where_none_is_known():
    # Batched, a choice is computed both ways, and JAX forgets where.
    turned = lambda i, a: jax.lax.cond(i > 0, jnp.sqrt, jnp.log, a)
    loss = lambda a: jnp.sum(jax.vmap(turned)(jnp.arange(2), a))
    found = blame(loss, jnp.array([1.0, -1.0]))
    assert_blames(found, "loss", "sqrt", None, "nan")
    assert "; sqrt was the first to make nan" in str(found)


def test_refusals():
    with pytest.raises(TypeError, match=r"state is a ArrayImpl, but must be a State: give run.sta"):
        jaxfit.blame(jnp.sum, jnp.ones(2), sgd)
    state = jaxfit.init(jnp.ones(2), sgd)
    many = jax.tree.map(lambda leaf: leaf[None], state)
    with pytest.raises(ValueError, match=r"state holds states of shape \(1,\), but one is"):
        jaxfit.blame(jnp.sum, many, sgd)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda state: str(jaxfit.blame(jnp.sum, state, sgd)))(state)
    with pytest.raises(TypeError, match="optimizer is 3"):
        jaxfit.blame(jnp.sum, state, 3)

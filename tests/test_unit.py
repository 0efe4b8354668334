"""Units of compilation: they round alike in every program, and derivatives pass through them."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxfit
from jaxfit import _unit, record
from tests.common import assert_close, assert_same_bits, guess, loss, perceptron, row
from tests.fuzz import MODELS, normal

everything = lambda step: step


def hidden(fn):
    """Make a unit of a function."""
    zeros = lambda: _unit.hide(jnp.zeros(2, np.int32))
    return lambda *args: _unit.unit(zeros(), fn, lambda: args)(*args)


def looped(fn):
    """Call a function in a loop that XLA may compile as one kernel.

    The arguments change in every iteration, so that nothing can be moved out of the loop. Returns
    the arguments and the results of every iteration, stacked.
    """

    @jax.jit
    def run(*args):
        alone = hidden(fn)
        body = lambda args, _: (tuple(1.01 * arg for arg in args), (args, alone(*args)))
        return lax.scan(body, args, length=5)[1]

    return run


def x(*shape):
    return np.random.default_rng(sum(shape)).uniform(0.1, 0.9, shape).astype("f")


UNARY = {
    name: getattr(lax, name)
    for name in (
        "abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos cosh cumlogsumexp"
        " cumprod cumsum digamma erf erf_inv erfc exp exp2 expm1 floor lgamma log log1p logistic"
        " neg reciprocal round rsqrt sign sin sinh sqrt square tan tanh"
    ).split()
}
BINARY = {
    name: getattr(lax, name)
    for name in "add atan2 div igamma igammac max min mul nextafter pow rem sub zeta".split()
}
OPERATIONS = {
    **{name: (fn, (x(37) + (name == "acosh"),)) for name, fn in UNARY.items()},
    **{name: (fn, (x(37) + (name == "zeta"), x(1) + 0 * x(37))) for name, fn in BINARY.items()},
    "integer_pow": (lambda x: x**3, (x(37),)),
    "clamp": (lambda x: jnp.clip(x, 0.3, 0.6), (x(37),)),
    "reduce_prod": (lambda x: x.prod(1), (x(5, 7),)),
    "reduce_sum": (lambda x: (x * x).sum(1), (x(5, 70),)),
    # Several axes at once, and what XLA makes of one axis and another.
    "sum of a matrix": (lambda x: (x * x).sum(), (x(64, 8),)),
    "mean of two axes": (lambda x: jnp.mean(x * x, (1, 2)), (x(4, 8, 2),)),
    "product of a matrix": (lambda x: (0.9 + x).prod(), (x(16, 2),)),
    "sum of sums": (lambda x: (x * x).sum(1).sum(0), (x(4, 8, 2),)),
    "sum of a reshaped matrix": (lambda x: (x * x).reshape(-1).sum(), (x(64, 8),)),
    "sum behind a call": (lambda x: jax.jit(jnp.sum)((x * x).reshape(-1)), (x(64, 8),)),
    "sum of a branch": (
        lambda x: lax.cond(x[0, 0] > 0, lambda x: (x * x).sum(0), lambda x: x[0], x).sum(),
        (x(16, 2),),
    ),
    "two axes of a dot product": (lambda a, b: jnp.tensordot(a, b, 2), (x(3, 8, 5), x(8, 5))),
    "logsumexp": (jax.nn.logsumexp, (x(37),)),
    "softmax": (jax.nn.softmax, (x(5, 7),)),
    "gelu": (jax.nn.gelu, (x(37),)),
    "betainc": (jax.scipy.special.betainc, (x(37), x(37) + 0.1, x(37))),
    "dot of vectors": (jnp.dot, (x(37), x(37))),
    "matrix times vector": (jnp.dot, (x(33, 17), x(17))),
    "short rows": (jnp.dot, (x(100, 2), x(2))),
    "vector times matrix": (jnp.dot, (x(33), x(33, 3))),
    "vector times transposed": (lambda v, m: v @ m.T, (x(17), x(5, 17))),
    "small matrices": (jnp.dot, (x(5, 2), x(2, 3))),
    "matrices": (jnp.dot, (x(33, 17), x(17, 16))),
    "batched": (lambda a, b: jnp.einsum("bij,bj->bi", a, b), (x(3, 5, 9), x(3, 9))),
    "convolution": (lambda x, k: jnp.convolve(x, k), (x(37), x(3))),
    "gather": (lambda x: x[jnp.array([3, 1, 2])] * 1.1, (x(37),)),
    "scatter": (lambda x: x.at[jnp.array([3, 1, 1])].add(x[:3] * 1.1), (x(37),)),
    "sort": (lambda x: jnp.sort(x) * 1.1, (x(37),)),
    "cond": (lambda x: lax.cond(x[0] > 0.5, lambda x: x * x, lambda x: x * 1.1 + x, x), (x(37),)),
    "where": (lambda x: jnp.where(x[0] > 0.05, 0.9 * x + 0.1 * x * x, x), (x(37),)),
    "scan": (lambda x: lax.scan(lambda c, x: (c * x + 0.1, c * x), 1.0, x), (x(37),)),
    "fft": (lambda x: jnp.fft.rfft(x).real, (x(16),)),
    "cholesky": (lambda x: jnp.linalg.cholesky(x @ x.T + jnp.eye(4)), (x(4, 4),)),
    "complex": (lambda x: (x * (1 + 2j) * x).real + (x * 1j).imag, (x(37),)),
    "Poisson": (
        jax.value_and_grad(lambda p, x, y: jnp.mean(jnp.exp(x @ p) - y * (x @ p))),
        (x(3), x(7, 3), x(7)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_rounds_the_same_alone_and_in_a_small_loop(name):
    fn, args = OPERATIONS[name]
    # Followed by a product and a sum, as in a loss and an optimizer.
    used = lambda *args: jax.tree.map(lambda leaf: (leaf, leaf * 0.9 + leaf * leaf), fn(*args))
    alone, (given, several) = jax.jit(hidden(used)), looped(used)(*args)
    for turn in range(5):
        assert_same_bits(row(several, turn), alone(*row(given, turn)))


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        ("lesson", "adam"),
        ("lesson", "MultiSteps"),
        ("perceptron", "momentum"),
        pytest.param("perceptron", "lbfgs", marks=pytest.mark.slow),
    ],
)
def test_a_lone_step_has_the_bits_of_the_step_in_any_loop(line, problem, name):
    optimizer = {
        "adam": optax.adam(0.01),
        "MultiSteps": optax.MultiSteps(optax.adamw(0.01), 4),
        "momentum": optax.sgd(0.05, momentum=0.9),
        "lbfgs": optax.lbfgs(),
    }[name]
    objective, start, data = (loss, guess, line) if problem == "lesson" else perceptron()
    one = jax.jit(lambda s: jaxfit.train(objective, s, optimizer, 1, data=data, record=everything))
    whole = jaxfit.train(objective, start, optimizer, 6, data=data, record=everything)
    state = jaxfit.init(start, optimizer)
    for t in range(6):
        run = one(state)
        assert_same_bits(row(run.trajectory, 0), row(whole.trajectory, t))
        state = run.state
    assert_same_bits(state, whole.state)


def test_an_optimizer_starts_with_the_same_bits_in_any_program():
    # DoG's first state holds a norm of the parameters, which XLA fuses.
    dog = optax.contrib.dog(init_step=("heuristic", 0.1))
    start = lambda params: jaxfit.init(params, dog).opt_state
    compiled = jax.jit(start)
    for number in range(12):
        params = {"w": normal(number, (5, 7), jnp.float32), "b": normal(50 + number, (9,), "f")}
        assert_same_bits(compiled(params), start(params))


@pytest.mark.parametrize("closed", ["data", "loss"])
def test_constants_round_as_arguments_do(closed):
    # LLVM unrolls a sum over 16 examples, and sums in another order if it knows the numbers.
    start, line = MODELS["scalars"](jnp.dtype("float32"), 17)
    known = normal(1, (16, 17), jnp.float32), normal(2, (16,), jnp.float32)

    def trained(state, given=None):
        objective = line if given or closed == "data" else lambda params: line(params, known)
        data = given or (known if closed == "data" else None)
        return jaxfit.train(objective, state, optax.adam(0.05), 3, data=data).state

    assert_same_bits(jax.jit(trained)(start), jax.jit(trained)(start, known))


def computations(text):
    """Return the code of the computations in optimized HLO that may not be inlined."""
    found = {}
    for name, body in re.findall(r"^%?([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.M | re.S):
        found[name] = re.sub(r", (metadata|frontend_attributes)=\{[^\n]*", "", body)

    def written(name):
        numbers = {}
        inner = lambda match: "{" + written(match[1]) + "}" if match[1] in found else match[0]
        body = re.sub(r"(?<=calls=)%([\w.-]+)|(?<=to_apply=)%([\w.-]+)", inner, found[name])
        return re.sub(
            r"%[\w.-]+", lambda match: numbers.setdefault(match[0], f"%{len(numbers)}"), body
        )

    calls = re.findall(r"call\(.*to_apply=%([\w.-]+), .*inlineable=\"false\"", text)
    return {written(name) for name in calls if name.startswith("update")}


def test_the_step_is_compiled_the_same_whatever_is_recorded(line):
    objective, start, data = perceptron()
    optimizer = optax.adam(0.01)

    def step(**options):
        run = jax.jit(lambda p: jaxfit.train(objective, p, optimizer, 20, data=data, **options))
        return computations(run.lower(start).compile().as_text())

    texts = step(record=everything)
    assert len(texts) == 1
    for options in (
        {"record": lambda s: s.loss},
        {"record": record.metrics, "record_every": 7},
        {"record": lambda s: 0, "keyframe_every": 3},
    ):
        assert step(**options) == texts


def test_only_a_cpu_is_told_of_units(line):
    objective, start, data = perceptron()
    run = jax.jit(lambda p: jaxfit.train(objective, p, optax.adam(0.01), 20, data=data).state)
    marked = lambda *platforms: (
        "inlineable" in str(jax.export.export(run, platforms=platforms)(start).mlir_module())
    )
    assert marked("cpu")
    for platform in ("cuda", "rocm", "tpu"):
        assert not marked(platform)
    text = str(jax.export.export(run, platforms=["cuda"])(start).mlir_module())
    assert not re.search(r"stablehlo\.(sort|bitcast_convert|optimization_barrier)", text)


def test_reverse_mode_holds_no_marks_inside(line):
    def end(start):
        run = jaxfit.train(loss, start, optax.adam(0.1), 20, data=line, keyframe_every=5)
        return run.state.params.sum()

    text = jax.jit(jax.grad(end)).lower(guess).as_text()
    assert all("call @" in of for of in text.splitlines() if "inlineable" in of)


def test_a_batched_unit_is_one_unit(line):
    run = jax.vmap(lambda start: jaxfit.train(loss, start, optax.adam(0.1), 20, data=line).state)
    text = jax.jit(run).lower(jnp.stack([guess, 2 * guess])).compile().as_text()
    assert len(computations(text)) == 1


# Derivatives.

STARTS = jnp.array([0.9, 0.4])


def fitted(rate, **options):
    curvatures = jnp.array([1.0, 0.3])
    objective = lambda p: 0.5 * jnp.sum(curvatures * p**2) + 0.1 * jnp.sum(jnp.sin(p))
    return jaxfit.train(objective, STARTS, optax.sgd(rate), 10, **options).state.params


def by_hand(rate):
    curvatures = jnp.array([1.0, 0.3])
    objective = lambda p: 0.5 * jnp.sum(curvatures * p**2) + 0.1 * jnp.sum(jnp.sin(p))
    step = lambda p, _: (p - rate * jax.grad(objective)(p), None)
    return lax.scan(step, STARTS, length=10)[0]


def around(end, how):
    """Return a second derivative through a run that is called in one of many ways."""
    inner = lambda x, rate: jnp.tanh(end(rate) @ x)
    if how == "checkpoint":
        out = jax.checkpoint(inner)
    elif how == "map":
        out = jax.checkpoint(lambda x, rate: lax.map(lambda r: inner(x, r), rate[None]).sum())
    elif how == "fori":
        out = jax.checkpoint(
            lambda x, rate: lax.fori_loop(0, 2, lambda i, s: s + inner(x, rate), 0.0)
        )
    elif how == "scan":
        out = jax.checkpoint(
            lambda x, rate: lax.scan(lambda c, s: (c + inner(s * x, rate), None), 0.0, jnp.ones(2))[
                0
            ]
        )
    elif how == "vmap":
        out = jax.checkpoint(
            lambda x, rate: jax.vmap(lambda s: inner(s * x, rate))(jnp.ones(2)).sum()
        )
    else:
        out = inner
    return jax.jacfwd(lambda rate: jax.grad(out)(jnp.array([1.0, 2.0]), rate).sum())(0.03)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "checkpoint", "map", "fori", "scan", "vmap"])
@pytest.mark.parametrize("options", [{}, {"keyframe_every": 4}], ids=["plain", "keyframes"])
def test_forward_over_reverse_goes_through_a_run_in_any_nesting(how, options):
    end = lambda rate: fitted(rate, **options)
    slope = around(end, how)
    assert slope != 0
    np.testing.assert_allclose(slope, around(by_hand, how), rtol=1e-4)


MODES = {
    "jvp": lambda f: jax.jvp(f, (0.03,), (1.0,))[1],
    "grad": lambda f: jax.grad(lambda r: f(r).sum())(0.03),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f))(0.03),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f))(0.03),
    "forward over reverse": lambda f: jax.jacfwd(jax.jacrev(f))(0.03),
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f))(0.03),
    "linearize": lambda f: jax.linearize(f, 0.03)[1](1.0),
    "vmap of grad": lambda f: jax.vmap(jax.grad(lambda r: f(r).sum()))(jnp.array([0.03, 0.1])),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_differentiation_agrees_with_a_scan_by_hand(mode):
    assert_close(MODES[mode](fitted), MODES[mode](by_hand), rtol=1e-4)

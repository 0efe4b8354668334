"""Look for a run whose bits depend on how it is recorded, cut, driven or batched.

    python -m tests.fuzz --seconds 600 --seed 1

draws configurations (a model, an optimizer, a dtype, data, a way to run) one seed after the other,
checks every promise about bits on each, and prints what does not hold; its exit status says whether
anything did not. `tests/test_bits.py` checks a fixed choice of the same.
"""

import argparse
import dataclasses
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import jaxfit
from jaxfit import record

everything = lambda step: step
decay = optax.exponential_decay(0.05, 1, 0.9)
by_rank = lambda params: jax.tree.map(lambda leaf: "a" if leaf.ndim > 1 else "b", params)
normalized = lambda: optax.chain(contrib.normalize(), optax.sgd(0.05))

# All of optax's optimizers that a step with one gradient can serve, and what they are built of.
OPTIMIZERS: dict[str, Callable[[float], Any]] = {
    "sgd": optax.sgd,
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "nesterov": lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True),
    "adabelief": optax.adabelief,
    "adadelta": lambda lr: optax.adadelta(20 * lr, rho=0.5, eps=1e-2),
    "adafactor": lambda lr: optax.adafactor(lr, min_dim_size_to_factor=2),
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "adam, decay": lambda lr: optax.adam(decay),
    "adam, bfloat16": lambda lr: optax.adam(lr, mu_dtype=jnp.bfloat16),
    "adamax": optax.adamax,
    "adamaxw": optax.adamaxw,
    "adamw": lambda lr: optax.adamw(lr, weight_decay=0.1),
    "adamw, cosine": lambda lr: optax.adamw(optax.warmup_cosine_decay_schedule(0, lr, 3, 12)),
    "adan": optax.adan,
    "amsgrad": optax.amsgrad,
    "fromage": optax.fromage,
    "lamb": optax.lamb,
    "lars": optax.lars,
    "lbfgs": lambda lr: optax.lbfgs(),
    "lbfgs, fixed": lambda lr: optax.lbfgs(lr, linesearch=None),
    "lion": optax.lion,
    "nadam": optax.nadam,
    "nadamw": optax.nadamw,
    "noisy_sgd": lambda lr: optax.noisy_sgd(lr, key=jax.random.key(1)),
    "novograd": optax.novograd,
    "optimistic_adam": optax.optimistic_adam_v2,
    "optimistic": optax.optimistic_gradient_descent,
    "polyak": lambda lr: optax.polyak_sgd(20 * lr),
    "radam": optax.radam,
    "rmsprop": lambda lr: optax.rmsprop(lr, momentum=0.5, centered=True),
    "rprop": optax.rprop,
    "sign": optax.sign_sgd,
    "signum": optax.signum,
    "sm3": optax.sm3,
    "yogi": optax.yogi,
    "acprop": contrib.acprop,
    "ademamix": contrib.ademamix,
    "adopt": contrib.adopt,
    "cocob": lambda lr: contrib.cocob(),
    "dadapt": lambda lr: contrib.dadapt_adamw(estim_lr0=lr),
    "dog": lambda lr: contrib.dog(init_step=("heuristic", lr)),
    "dowg": lambda lr: contrib.dowg(init_estim_sq_dist=lr),
    "galore": lambda lr: contrib.galore(lr, rank=2, update_proj_gap=3),
    "madgrad": contrib.madgrad,
    "mechanize": lambda lr: contrib.mechanize(optax.sgd(lr), s_init=0.1),
    "momo": lambda lr: contrib.momo(),
    "momo_adam": contrib.momo_adam,
    "muon": contrib.muon,
    "prodigy": lambda lr: contrib.prodigy(estim_lr0=lr),
    "sam": lambda lr: contrib.sam(optax.sgd(lr), normalized()),
    "sam, opaque": lambda lr: contrib.sam(optax.sgd(lr), normalized(), 3, opaque_mode=True),
    "schedule-free adamw": lambda lr: contrib.schedule_free_adamw(lr, warmup_steps=3),
    "schedule-free sgd": contrib.schedule_free_sgd,
    "simplified ademamix": contrib.simplified_ademamix,
    "sophia": lambda lr: contrib.sophia(lr, update_interval=2),
    "plateau": lambda lr: optax.chain(
        optax.adam(lr), contrib.reduce_on_plateau(patience=2, rtol=0.1)
    ),
    "clip": lambda lr: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(lr, momentum=0.9)),
    "adaptive clip": lambda lr: optax.chain(optax.adaptive_grad_clip(0.1), optax.adam(lr)),
    "block clip": lambda lr: optax.chain(optax.clip_by_block_rms(0.1), optax.adam(lr)),
    "centralize": lambda lr: optax.chain(optax.centralize(), optax.adam(lr)),
    "noise": lambda lr: optax.chain(optax.add_noise(0.1, 0.55, key=2), optax.sgd(lr)),
    "ema": lambda lr: optax.chain(optax.ema(0.9), optax.sgd(lr)),
    "apply_every": lambda lr: optax.chain(optax.adam(lr), optax.apply_every(3)),
    "apply_if_finite": lambda lr: optax.apply_if_finite(optax.adam(lr), 3),
    "conditionally": lambda lr: optax.chain(
        optax.conditionally_transform(optax.clip_by_global_norm(0.1), lambda n: n % 2 == 0),
        optax.sgd(lr),
    ),
    "flatten": lambda lr: optax.flatten(optax.adam(lr)),
    "inject": lambda lr: optax.inject_hyperparams(optax.adamw)(decay, weight_decay=0.1),
    "masked": lambda lr: optax.chain(
        optax.masked(optax.add_decayed_weights(0.1), lambda p: jax.tree.map(jnp.ndim, p)),
        optax.sgd(lr),
    ),
    "partition": lambda lr: optax.partition({"a": optax.adam(lr), "b": optax.sgd(lr)}, by_rank),
    "MultiSteps adam": lambda lr: optax.MultiSteps(optax.adam(lr), 2),
    "MultiSteps adamw": lambda lr: optax.MultiSteps(optax.adamw(lr), 4),
    "MultiSteps sum": lambda lr: optax.MultiSteps(optax.sgd(lr), 3, use_grad_mean=False),
    "rule": lambda lr: (
        lambda grads, params: jax.tree.map(
            lambda g, p: -lr * g - 0.01 * p * jnp.abs(p), grads, params
        )
    ),
}
DTYPES = ("float32", "float64", "bfloat16", "float16", "complex64")


def normal(number: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    real = jax.random.normal(jax.random.key(number), shape)
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return real.astype(dtype)
    return jax.lax.complex(real, jax.random.normal(jax.random.key(-number), shape)).astype(dtype)


def square(x: jax.Array) -> jax.Array:
    return jnp.mean((x * x.conj()).real)


def scalars(dtype, features):
    """The lesson, with its slope and its intercept as numbers of their own."""
    start = {"slope": jnp.asarray(-1, dtype), "intercept": jnp.asarray(1, dtype)}
    return start, lambda p, b: square(p["slope"] * b[0][:, 0] + p["intercept"] - b[1])


def linear(dtype, features):
    return normal(3, (features,), dtype), lambda p, b: square(b[0] @ p - b[1])


def transposed(dtype, features):
    return normal(3, (features,), dtype), lambda p, b: square(p @ b[0].T - b[1])


def scaled(dtype, features):
    """A mean over two axes of products, without a matrix product."""
    return normal(3, (features,), dtype), lambda p, b: square(b[0] * p - b[1][:, None])


def rosenbrock(dtype, features):
    def loss(p, b):
        return square(p[1:] - p[:-1] ** 2) + 0.1 * square(1 - p[:-1]) + 0 * b[1][0].real

    return normal(3, (max(features, 2),), dtype), loss


def product(dtype, features):
    """Two numbers that meet in a product only."""
    start = normal(3, (2,), dtype)
    return start, lambda p, b: square(p[0] * p[1] * b[1] - b[1] ** 2) + 0.1 * square(p)


def perceptron(activation, width=8):
    def make(dtype, features):
        start = {
            "w": normal(3, (features, width), dtype) / 2,
            "b": jnp.zeros(width, dtype),
            "v": normal(4, (width, 2), dtype) / 2,
        }

        def loss(p, b):
            out = activation(b[0] @ p["w"] + p["b"]) @ p["v"]
            return square(out[:, 0] - b[1]) + 0.1 * square(out[:, 1])

        return start, loss

    return make


def recurrent(dtype, features):
    start = {"w": normal(3, (4, 4), dtype) / 2, "u": normal(4, (4,), dtype)}

    def loss(p, b):
        cell = lambda state, x: (jnp.tanh(state @ p["w"] + x[:, None] * p["u"]), None)
        state = jnp.zeros((len(b[1]), 4), b[0].dtype)
        return square(jax.lax.scan(cell, state, b[0].T)[0].sum(1) - b[1])

    return start, loss


def convolution(dtype, features):
    start = normal(3, (1, 1, 3), dtype)

    def loss(p, b):
        out = jax.lax.conv_general_dilated(b[0][:, None], p, (1,), "SAME")
        return square(out.sum((1, 2)) - b[1])

    return start, loss


def attention(dtype, features):
    start = {name: normal(i, (features, 3), dtype) / 2 for i, name in enumerate("qkv")}

    def loss(p, b):
        q, k, v = (b[0] @ p[name] for name in "qkv")
        return square((jax.nn.softmax(q @ k.T) @ v).sum(1) - b[1])

    return start, loss


def special(dtype, features):
    def loss(p, b):
        rate = jax.nn.softplus(b[0] @ p)
        return jnp.mean(jax.lax.lgamma(rate + 1) + rate - b[1] * jnp.log(rate + 0.1))

    return normal(3, (features,), dtype), loss


def mixed(dtype, features):
    start = {
        "a": normal(3, (features,), jnp.bfloat16),
        "b": normal(4, (features,), jnp.float32),
        "n": jnp.arange(3),
    }
    return start, lambda p, b: square(b[0] @ (p["a"].astype(jnp.float32) * p["b"]) - b[1])


def normalized_layer(x):
    return jnp.tanh((x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5))


MODELS = {
    "scalars": scalars,
    "linear": linear,
    "transposed": transposed,
    "scaled": scaled,
    "rosenbrock": rosenbrock,
    "product": product,
    "tanh": perceptron(jnp.tanh),
    "relu": perceptron(jax.nn.relu),
    "gelu": perceptron(jax.nn.gelu),
    "silu": perceptron(jax.nn.silu),
    "softmax": perceptron(jax.nn.softmax),
    "layer norm": perceptron(normalized_layer),
    "wide": perceptron(jnp.tanh, 80),
    "recurrent": recurrent,
    "convolution": convolution,
    "attention": attention,
    "special": special,
    "mixed": mixed,
}
REAL = {"relu", "gelu", "silu", "softmax", "layer norm", "attention", "special", "mixed"}
RECORDERS = {
    "whole": record.whole,
    "everything": everything,
    "loss": lambda step: step.loss,
    "step": lambda step: step.step,
    "nothing": lambda step: 0,
    "state": record.state,
    "metrics": record.metrics,
    "grads": lambda step: step.grads,
    "updates": lambda step: step.updates,
    "batch": lambda step: step.batch,
    "products": lambda step: jax.tree.map(lambda g, u: g * u + g, step.grads, step.updates),
}
WAYS = ("record", "resume", "replay", "fit", "sweep")
DATA = ("constant", "closed over", "in the loss", "function", "minibatches", "noise")
SCHEDULES = (
    {},
    {"record_every": 2},
    {"record_every": 3},
    {"record_every": 7},
    {"keyframe_every": 5},
    {"record_every": 2, "keyframe_every": 4},
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem, and a way to run it."""

    model: str
    optimizer: str
    dtype: str = "float32"
    data: str = "constant"
    mode: str = "jit"  # or eager, or vmap
    aux: bool = False
    features: int = 3
    examples: int = 16
    batch_size: int = 5
    steps: int = 12
    rate: float = 0.03
    carry: bool = False


def draw(seed: int) -> tuple[Case, random.Random]:
    """Draw a case, and the generator that draws what is checked of it."""
    rng = random.Random(seed)
    model, optimizer = rng.choice(list(MODELS)), rng.choice(list(OPTIMIZERS))
    dtype = rng.choice(("float32",) * 5 + DTYPES)
    if model == "mixed" or (model in REAL and dtype == "complex64"):
        dtype = "float32"
    case = Case(
        model,
        optimizer,
        dtype,
        rng.choice(DATA),
        rng.choice(("jit", "jit", "jit", "eager", "vmap")),
        rng.random() < 0.2,
        rng.choice((2, 3, 8, 17)),
        rng.choice((7, 16, 33)),
        rng.choice((1, 5, 7)),
        rng.choice((5, 12, 20)),
        10 ** rng.uniform(-3, -0.5),
        rng.random() < 0.3,
    )
    return case, rng


def with_carry(loss, has_aux):
    """Return a loss that draws a number at every step, counts, and averages its batches."""

    def carrying(p, carry, b):
        key, now = jax.random.split(carry["key"])
        out = loss(p, b)
        value, aux = out if has_aux else (out, None)
        value = value * (1 + 0.1 * jax.random.normal(now)).astype(value.dtype)
        seen = jnp.mean(b[1].real).astype(jnp.float32) + value.astype(jnp.float32)
        mean = 0.9 * carry["mean"] + 0.1 * seen
        carry = {"key": key, "mean": mean, "odd": ~carry["odd"], "count": carry["count"] + 1}
        return value, ((carry, aux) if has_aux else carry)

    return carrying


def check(case: Case, rng: random.Random, ways: tuple[str, ...] = WAYS) -> list[str]:
    """Return which promises about bits a case breaks."""
    with jax.enable_x64(case.dtype == "float64"):
        return _check(case, rng, ways)


def _check(case: Case, rng: random.Random, ways: tuple[str, ...]) -> list[str]:
    dtype = jnp.dtype(case.dtype)
    start, model = MODELS[case.model](dtype, case.features)
    bare = (lambda p, b: model(p, arrays)) if case.data == "in the loss" else model
    arrays = normal(1, (case.examples, case.features), dtype), normal(2, (case.examples,), dtype)
    optimizer = OPTIMIZERS[case.optimizer](case.rate)
    loss = (lambda p, b: (bare(p, b), {"seen": b[1][0], "n": 1})) if case.aux else bare
    fixed, carry = {"has_aux": case.aux}, None
    if case.carry:
        loss = with_carry(loss, case.aux)
        carry = {"key": jax.random.key(6), "mean": jnp.float32(0), "odd": False, "count": 0}
    forward = lambda step: bare(step.params, step.batch)
    evaluate = lambda state: {"loss": bare(state.params, arrays), "of": state.carry}
    scales = jnp.array([1.0, 0.5, 1.7])

    def data_of(arrays):
        if case.data in ("constant", "closed over", "in the loss"):
            return arrays
        rows = lambda step: (7 * step + 5 * jnp.arange(case.batch_size)) % case.examples
        if case.data == "function":
            return lambda step: jax.tree.map(lambda leaf: leaf[rows(step)], arrays)
        batches = jaxfit.minibatches(arrays, case.batch_size, jax.random.key(9))
        if case.data == "minibatches":
            return batches

        def noisy(step):
            x, y = batches(step)
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(5), step), x.shape)
            return x * (1 + 0.1 * noise).astype(x.dtype), y

        return noisy

    def scaled(scale):
        times = lambda leaf: leaf * scale.astype(leaf.real.dtype)
        inexact = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jax.tree.map(lambda leaf: times(leaf) if inexact(leaf) else leaf, start)

    def compiled(fn, first=start, states=False):
        """Call ``fn(first, data)`` in the mode of the case."""
        given = None if case.data == "closed over" else arrays
        call = lambda first, given: fn(first, data_of(arrays if given is None else given))
        if case.mode == "eager":
            return call(first, given)
        if case.mode == "vmap" and states:
            return jax.jit(jax.vmap(call, (0, None)))(first, given)
        if case.mode == "vmap":
            return jax.jit(
                lambda given: jax.vmap(lambda scale: call(scaled(scale), given))(scales)
            )(given)
        return jax.jit(call)(first, given)

    def train(first=start, steps=case.steps, states=False, **options):
        begin = {} if isinstance(first, jaxfit.State) else {"carry": carry}
        run = lambda first, data: jaxfit.train(
            loss, first, optimizer, steps, data=data, **fixed, **begin, **options
        )
        return compiled(run, first, states)

    axis = 1 if case.mode == "vmap" else 0
    cut = lambda tree, *part: jax.tree.map(
        lambda leaf: _raw(leaf)[(slice(None),) * axis + (slice(*part),)], tree
    )
    whole = train(record=everything)
    found = []

    def expect(what, given, wanted):
        if difference := differ(given, wanted):
            found.append(f"{what}: {difference}")

    names = rng.sample(list(RECORDERS), 3 if len(ways) > 2 else 1)
    for name in names:
        schedule = rng.choice(SCHEDULES)
        if rng.random() < 0.3:
            every = schedule.get("keyframe_every", schedule.get("record_every", 3))
            schedule = {**schedule, "evaluate": evaluate, "evaluate_every": every}
        run = train(record=RECORDERS[name], **schedule)
        expect(f"state, recording {name} {schedule}", run.state, whole.state)
        if name in ("state", "grads", "updates", "batch", "loss", "everything"):
            rows = RECORDERS[name](cut(whole.trajectory, None, None, schedule.get("record_every")))
            expect(f"rows of {name} {schedule}", run.trajectory, rows)
    if case.mode == "vmap":  # what goes on from many states is promised to rounding
        return found
    if "resume" in ways:
        first = rng.randrange(1, case.steps)
        one = train(steps=first, record=RECORDERS[rng.choice(names)])
        two = train(one.state, case.steps - first, record=RECORDERS[rng.choice(names)])
        expect(f"state, resumed at {first}", two.state, whole.state)
        rows = train(record=forward).trajectory
        lone = train(one.state, 1, record=forward)
        expect(
            f"the loss again, of step {first} alone", lone.trajectory, cut(rows, first, first + 1)
        )
        expect(
            "the loss again, sparse",
            train(record=forward, record_every=3).trajectory,
            cut(rows, None, None, 3),
        )
    if "replay" in ways:
        framed = train(record=lambda step: step.loss, keyframe_every=rng.choice((3, 7)))
        begin = rng.randrange(case.steps)
        end = rng.randrange(begin + 1, case.steps + 1)
        again = compiled(
            lambda run, data: jaxfit.replay(
                loss, run, optimizer, begin, end, data=data, record=everything, **fixed
            ),
            framed,
        )
        expect(f"replay of {begin} to {end}", again.trajectory, cut(whole.trajectory, begin, end))
        at = lambda run, data: jaxfit.at(loss, run, optimizer, begin, data=data, **fixed)
        alone = jax.tree.map(lambda leaf: _raw(leaf)[None], compiled(at, framed))
        expect(f"at {begin}", alone, cut(whole.trajectory, begin, begin + 1))
    if "fit" in ways:
        size, name = rng.choice((1, 2, 3, 7)), rng.choice(("loss", "everything"))
        evaluated = {"evaluate": evaluate, "evaluate_every": rng.choice((1, 4))}
        fitted = jaxfit.fit(
            loss,
            start,
            optimizer,
            case.steps,
            data=data_of(arrays),
            record=RECORDERS[name],
            chunk_size=size,
            progress=False,
            carry=carry,
            **evaluated,
            **fixed,
        )
        run = train(record=RECORDERS[name], **evaluated)
        expect("evaluations of fit", fitted.evaluations, run.evaluations)
        expect(f"state, fitted in chunks of {size}", fitted.state, whole.state)
        expect("rows of fit", fitted.trajectory, RECORDERS[name](whole.trajectory))
    if "sweep" in ways and case.mode == "jit" and (ways == ("sweep",) or rng.random() < 0.5):
        member = lambda scale: (
            jaxfit.train(
                loss,
                scaled(scale),
                optimizer,
                case.steps,
                data=data_of(arrays),
                carry=carry,
                **fixed,
            ).state
        )
        swept = jaxfit.sweep(member, {"scale": scales}, batch_size=1).values
        for index in range(len(scales)):
            pick = jax.tree.map(lambda leaf: _raw(leaf)[index], swept)  # noqa: B023
            expect("member of a sweep", pick, jax.jit(member)(scales[index]))
    return found


def _raw(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def differ(one: Any, other: Any) -> str | None:
    """Say where two trees have other bits."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return "the structure differs"
    leaves = jax.tree_util.tree_leaves_with_path(one)
    for (path, left), right in zip(leaves, jax.tree.leaves(other), strict=True):
        left, right = _raw(left), _raw(right)
        if (left.dtype, left.shape, left.tobytes()) != (right.dtype, right.shape, right.tobytes()):
            return f"{jax.tree_util.keystr(path)} {left.dtype}{list(left.shape)} differs"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long to go on (600)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (0)")
    args = parser.parse_args()
    end, seed, failed, refused = time.monotonic() + args.seconds, args.seed, 0, 0
    while time.monotonic() < end:
        case, rng = draw(seed)
        try:
            found = check(case, rng)
        except ValueError as error:  # some optimizers do not take some dtypes
            refused += 1
            print(f"seed {seed}: {case}: refused: {str(error)[:100]}", flush=True)
            found = []
        for what in found:
            print(f"seed {seed}: {case}: {what}", flush=True)
        failed, seed = failed + bool(found), seed + 1
        if seed % 10 == 0:
            jax.clear_caches()
    tried = seed - args.seed
    print(
        f"jax {jax.__version__}: {tried} configurations, {refused} of them refused, {failed} failed"
    )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

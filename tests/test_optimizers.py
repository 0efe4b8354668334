"""Every optimizer of optax under `jaxfit.train`, against a loop written as optax documents it."""

import dataclasses
import functools
import inspect
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxfit

STEPS = 7
# Nearly all the time goes into compiling; and both loops are rounded alike where neither is
# optimised, so that no optimizer needs a tolerance of its own.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}

generator = np.random.default_rng(0)
INPUTS = jnp.asarray(generator.normal(size=(5, 3)), jnp.float32)
TARGETS = jnp.asarray(generator.uniform(-0.9, 0.9, size=(5, 4)), jnp.float32)
PARAMS = {
    "w": jnp.asarray(generator.normal(size=(3, 4)), jnp.float32),
    "b": jnp.asarray(generator.normal(size=4), jnp.float32),
}
COMPLEX_PARAMS = jax.tree.map(lambda leaf: leaf * jnp.complex64(0.3 + 0.2j), PARAMS)
POSITIVE_PARAMS = jax.tree.map(jnp.abs, PARAMS)
LOOKAHEAD_PARAMS = optax.LookaheadParams.init_synced(PARAMS)
WEIGHTS_ONLY = {"w": True, "b": False}


def loss(params, batch):
    inputs, targets = batch
    residual = jnp.tanh(inputs @ params["w"] + params["b"]) - targets
    return jnp.sum(jnp.abs(residual) ** 2) / len(targets)


def rolled(step):
    """Another loss in every step, so that an optimizer given another step's loss is found out."""
    return INPUTS, jnp.roll(TARGETS, step, axis=0)


def rolled_with_nan(step):
    inputs, targets = rolled(step)
    return inputs, jnp.where(step == 2, jnp.nan, targets)


def schedule(step):
    return 0.1 * 0.7**step


def is_even(step):
    return step % 2 == 0


def is_loss_high(step, *, value, **_):
    return value > 3.5


def descend(grads, params):
    return jax.tree.map(lambda grad, leaf: -0.1 * grad - 0.01 * leaf, grads, params)


class HeavyBall(NamedTuple):
    velocity: Any


def own_init(params):
    return HeavyBall(jax.tree.map(jnp.zeros_like, params))


def own_update(grads, state, params=None):
    velocity = jax.tree.map(lambda v, g: 0.9 * v - 0.1 * g, state.velocity, grads)
    return velocity, HeavyBall(velocity)


def own_update_with_value(grads, state, params=None, *, value, **extra_args):
    velocity, state = own_update(grads, state)
    return jax.tree.map(lambda v: value * v, velocity), state


def normalized_ascent():
    return optax.chain(contrib.normalize(), optax.sgd(0.1))


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer, and the extra arguments that its documentation has the loop hand to update."""

    optimizer: Any
    extra: tuple[str, ...] = ()
    params: Any = dataclasses.field(default_factory=lambda: PARAMS)
    data: Callable = rolled
    given: Any = None  # to jaxfit, if not the optimizer itself


LINE_SEARCH = ("value", "grad", "value_fn")

# A name up to its first hyphen is that of the factory in optax or optax.contrib. Learning rates
# and first guesses are large, so that the parameters get far in a few steps.
TABLE = {
    # optax
    "adabelief": Case(optax.adabelief(0.1)),
    "adadelta": Case(optax.adadelta(1.0, rho=0.5, eps=1e-2)),
    "adafactor": Case(optax.adafactor(0.1, min_dim_size_to_factor=2)),
    "adagrad": Case(optax.adagrad(0.1)),
    "adam": Case(optax.adam(0.1)),
    "adam-schedule": Case(optax.adam(schedule)),
    "adamax": Case(optax.adamax(0.1)),
    "adamaxw": Case(optax.adamaxw(0.1, weight_decay=0.1)),
    "adamw": Case(optax.adamw(0.1, weight_decay=0.1, mask=WEIGHTS_ONLY)),
    "adan": Case(optax.adan(0.1)),
    "amsgrad": Case(optax.amsgrad(0.1)),
    "fromage": Case(optax.fromage(0.1)),
    "lamb": Case(optax.lamb(0.1)),
    "lars": Case(optax.lars(0.1, trust_coefficient=0.5)),
    "lbfgs": Case(optax.lbfgs(), LINE_SEARCH),
    "lbfgs-backtracking": Case(
        optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(15, slope_rtol=0.5)),
        LINE_SEARCH,
    ),
    "lbfgs-complex": Case(optax.lbfgs(), LINE_SEARCH, params=COMPLEX_PARAMS),
    "lion": Case(optax.lion(0.1)),
    "nadam": Case(optax.nadam(0.1)),
    "nadamw": Case(optax.nadamw(0.1)),
    "noisy_sgd": Case(optax.noisy_sgd(0.1, key=jax.random.key(1))),
    "novograd": Case(optax.novograd(0.1)),
    "optimistic_adam_v2": Case(optax.optimistic_adam_v2(0.1)),
    "optimistic_gradient_descent": Case(optax.optimistic_gradient_descent(0.1)),
    "polyak_sgd": Case(optax.polyak_sgd(100.0, scaling=10.0), ("value",)),
    "radam": Case(optax.radam(0.1)),
    "rmsprop": Case(optax.rmsprop(0.1, momentum=0.5, centered=True)),
    "rprop": Case(optax.rprop(0.1)),
    "sgd": Case(optax.sgd(0.1)),
    "sgd-complex": Case(optax.sgd(0.1), params=COMPLEX_PARAMS),
    "sgd-momentum": Case(optax.sgd(0.1, momentum=0.9)),
    "sgd-nesterov": Case(optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "sign_sgd": Case(optax.sign_sgd(0.1)),
    "signum": Case(optax.signum(0.1)),
    "sm3": Case(optax.sm3(0.1)),
    "yogi": Case(optax.yogi(0.1)),
    # optax.contrib
    "acprop": Case(contrib.acprop(0.1)),
    "ademamix": Case(contrib.ademamix(0.1)),
    "adopt": Case(contrib.adopt(0.1)),
    "cocob": Case(contrib.cocob()),
    "dadapt_adamw": Case(contrib.dadapt_adamw(estim_lr0=0.1)),
    "dog": Case(contrib.dog(init_step=("heuristic", 0.1))),
    "dowg": Case(contrib.dowg(init_estim_sq_dist=0.1)),
    "galore": Case(contrib.galore(0.1, rank=2, update_proj_gap=3)),
    "madgrad": Case(contrib.madgrad(0.1)),
    "mechanize": Case(contrib.mechanize(optax.sgd(0.1), s_init=0.1)),
    "momo": Case(contrib.momo(adapt_lower_bound=True), ("value",)),
    "momo_adam": Case(contrib.momo_adam(0.1), ("value",)),
    "muon": Case(contrib.muon(0.1)),
    "prodigy": Case(contrib.prodigy(estim_lr0=0.1)),
    "reduce_on_plateau": Case(
        optax.chain(optax.adam(0.1), contrib.reduce_on_plateau(patience=2, rtol=0.1)), ("value",)
    ),
    "sam": Case(contrib.sam(optax.sgd(0.1), normalized_ascent())),
    "sam-opaque": Case(
        contrib.sam(optax.sgd(0.1), normalized_ascent(), sync_period=3, opaque_mode=True),
        ("grad_fn",),
    ),
    "schedule_free": Case(contrib.schedule_free(optax.sgd(schedule), schedule)),
    "schedule_free_adamw": Case(contrib.schedule_free_adamw(0.1, warmup_steps=3)),
    "schedule_free_sgd": Case(contrib.schedule_free_sgd(0.1)),
    "simplified_ademamix": Case(contrib.simplified_ademamix(0.1)),
    "sophia": Case(contrib.sophia(0.1, update_interval=2), ("obj_fn",)),
    "split_real_and_imaginary": Case(
        contrib.split_real_and_imaginary(optax.adam(0.1)), params=COMPLEX_PARAMS
    ),
    # around and between optimizers
    "add_noise": Case(optax.chain(optax.add_noise(0.1, 0.55, key=2), optax.sgd(0.1))),
    "apply_if_finite": Case(optax.apply_if_finite(optax.adam(0.1), 3), data=rolled_with_nan),
    "chain": Case(optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1))),
    "chain-lbfgs": Case(optax.chain(optax.add_decayed_weights(1e-3), optax.lbfgs()), LINE_SEARCH),
    "conditionally_mask": Case(
        optax.conditionally_mask(optax.adam(0.1), is_loss_high, forward_extra_args=True),
        ("value",),
    ),
    "conditionally_transform": Case(
        optax.chain(
            optax.conditionally_transform(optax.clip_by_global_norm(0.1), is_even), optax.sgd(0.1)
        )
    ),
    "ema": Case(optax.chain(optax.ema(0.9), optax.sgd(0.1))),
    "flatten": Case(optax.flatten(optax.adam(0.1))),
    "freeze": Case(optax.chain(optax.adam(0.1), optax.freeze({"w": False, "b": True}))),
    "inject_hyperparams": Case(optax.inject_hyperparams(optax.adam)(schedule)),
    "inject_hyperparams-value": Case(
        optax.inject_hyperparams(optax.polyak_sgd)(100.0, scaling=10.0), ("value",)
    ),
    "keep_params_nonnegative": Case(
        optax.chain(optax.sgd(0.5), optax.keep_params_nonnegative()), params=POSITIVE_PARAMS
    ),
    "lookahead": Case(optax.lookahead(optax.adam(0.1), 3, 0.5), params=LOOKAHEAD_PARAMS),
    "masked": Case(
        optax.chain(optax.masked(optax.add_decayed_weights(0.1), WEIGHTS_ONLY), optax.sgd(0.1))
    ),
    "named_chain": Case(optax.named_chain(("clip", optax.clip(0.1)), ("sgd", optax.sgd(0.1)))),
    "partition": Case(
        optax.partition(
            {"weights": optax.adam(0.1), "biases": optax.polyak_sgd(100.0, scaling=10.0)},
            {"w": "weights", "b": "biases"},
        ),
        ("value",),
    ),
    "selective_transform": Case(
        optax.selective_transform(optax.adam(0.1), freeze_mask={"w": True, "b": False})
    ),
    "snapshot": Case(
        optax.chain(
            optax.sgd(0.1, momentum=0.9),
            optax.snapshot("norm_before_clip", optax.tree.norm),
            optax.clip_by_global_norm(0.05),
        )
    ),
    "stateless": Case(optax.stateless(descend), given=descend),
    "MultiSteps": Case(optax.MultiSteps(optax.adam(0.1), 2)),
    "MultiSteps-transformation": Case(
        optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()
    ),
    "MultiSteps-value": Case(
        optax.MultiSteps(optax.polyak_sgd(100.0, scaling=10.0), 2), ("value",)
    ),
    # a user's own
    "own": Case(optax.GradientTransformation(own_init, own_update)),
    "own-value": Case(
        optax.GradientTransformationExtraArgs(own_init, own_update_with_value), ("value",)
    ),
}

# As factories, for some of them warn when they are made; each with a word of the refusal.
REFUSED = {
    "dpsgd": (lambda: contrib.dpsgd(0.1, 1.0, 1.0, seed=0), "per-example"),
    "monitor": (
        lambda: optax.chain(optax.monitor({"norm": optax.tree.norm}), optax.sgd(0.1)),
        "state",
    ),
    "lookahead-without-pair": (lambda: optax.lookahead(optax.sgd(0.1), 3, 0.5), "init_synced"),
    "masked-lbfgs": (lambda: optax.masked(optax.lbfgs(), WEIGHTS_ONLY), "outermost"),
    "partition-lbfgs": (
        lambda: optax.partition(
            {"weights": optax.lbfgs(), "biases": optax.sgd(0.1)}, {"w": "weights", "b": "biases"}
        ),
        "outermost",
    ),
    "chain-sam": (
        lambda: optax.chain(
            optax.clip_by_global_norm(0.1), contrib.sam(optax.sgd(0.1), normalized_ascent())
        ),
        "outermost",
    ),
    "chain-sam-opaque": (
        lambda: optax.chain(
            optax.clip_by_global_norm(0.1),
            contrib.sam(optax.sgd(0.1), normalized_ascent(), opaque_mode=True),
        ),
        "outermost",
    ),
    "MultiSteps-sam": (
        lambda: optax.MultiSteps(contrib.sam(optax.sgd(0.1), normalized_ascent()), 2),
        "outermost",
    ),
}

EXCLUDED = {
    "differentially_private_aggregate": "takes per-example gradients; in dpsgd, which is refused",
    "inject_stateful_hyperparams": "deprecated: is inject_hyperparams, with a warning",
    "multi_transform": "the old name of partition",
    "optimistic_adam": "deprecated in favour of optimistic_adam_v2",
    "with_extra_args_support": "changes a signature alone",
    **dict.fromkeys(
        (
            "adaptive_grad_clip",
            "add_decayed_weights",
            "apply_every",
            "centralize",
            "clip",
            "clip_by_block_rms",
            "clip_by_global_norm",
            "hutchinson_estimator_diag_hessian",
            "identity",
            "measure_with_ema",
            "normalize",
            "normalize_by_update_norm",
            "scale",
            "set_to_zero",
            "stateless_with_tree_map",
            "trace",
            "zero_nans",
        ),
        "a building block like those named scale_by_…: it goes into a chain, and trains nothing",
    ),
    **dict.fromkeys(
        (
            "matrix_inverse_pth_root",
            "schedule_free_eval_params",
            "sigmoid_binary_cross_entropy",
            "update_infinity_moment",
            "update_moment",
            "update_moment_per_elem_norm",
        ),
        "returns arrays, which no annotation tells",
    ),
}


def public_factories() -> Iterator[str]:
    """The functions of optax that say they return an optimizer, or do not say what they return."""
    for module in (optax, contrib):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            returned = inspect.signature(function).return_annotation
            is_factory = "GradientTransformation" in str(returned)
            is_unsaid = returned is inspect.Signature.empty
            if (is_factory or is_unsaid) and not name.startswith("_"):
                yield name


def reference(case: Case) -> tuple[Any, Any, jax.Array]:
    """The loop that optax documents: parameters, optimizer state, losses [steps]."""

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    def update(params, opt_state, step):
        batch = case.data(step)

        def value_fn(params):
            return loss(params, batch)

        iterate = params.fast if isinstance(params, optax.LookaheadParams) else params
        value, grad = jax.value_and_grad(value_fn)(iterate)
        grad = optax.tree.conj(grad)
        known = {
            "value": value,
            "grad": grad,
            "value_fn": value_fn,
            "obj_fn": value_fn,
            "grad_fn": jax.grad(lambda params, _: loss(params, batch)),
        }
        extra = {name: known[name] for name in case.extra}
        updates, opt_state = case.optimizer.update(grad, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state, value

    params, opt_state, losses = case.params, case.optimizer.init(case.params), []
    for step in range(STEPS):
        params, opt_state, value = update(params, opt_state, step)
        losses.append(value)
    return params, opt_state, jnp.stack(losses)


def assert_close(actual: Any, expected: Any, atol: float = 1e-6) -> None:
    """Floating leaves to within rounding; keys, counts and flags exactly."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        if jnp.issubdtype(one.dtype, jnp.inexact):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())
def test_equals_documented_loop(case):
    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    def train(params):
        optimizer = case.optimizer if case.given is None else case.given
        return jaxfit.train(
            loss, params, optimizer, STEPS, data=case.data, record=lambda step: step.loss
        )

    run = train(case.params)
    params, opt_state, losses = reference(case)
    assert_close(run.trajectory, losses)
    assert_close(run.state.params, params)
    # The differences that L-BFGS remembers are small, and of larger numbers that were rounded.
    assert_close(run.state.opt_state, opt_state, atol=1e-5)
    # Where nothing moves, or all is NaN, everything is close.
    assert optax.tree.norm(optax.tree.sub(params, case.params)) > 0.1


@pytest.mark.filterwarnings('ignore:"seed" is deprecated:DeprecationWarning')
@pytest.mark.parametrize(("make", "match"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_in_one_sentence(make, match):
    with pytest.raises((TypeError, ValueError), match=match) as refusal:
        jaxfit.train(loss, PARAMS, make(), STEPS, data=rolled)
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    raised_in = pathlib.Path(refusal.traceback[-1].path)
    assert raised_in.parent == pathlib.Path(jaxfit.__file__).parent


def test_no_public_factory_is_missing():
    known = {name.partition("-")[0] for name in (*TABLE, *REFUSED)} | EXCLUDED.keys()
    factories = {name for name in public_factories() if not name.startswith("scale_by_")}
    assert factories - known == set()

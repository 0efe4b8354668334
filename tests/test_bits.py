"""The promises about bits, on a fixed choice that covers every optimizer, dtype and way to run.

``python -m tests.fuzz`` draws as many other configurations as one likes.
"""

import random

import pytest

from tests.fuzz import DATA, DTYPES, OPTIMIZERS, WAYS, Case, check

# Small problems in float32, where XLA makes one kernel of a loop, and where it does not.
PROBLEMS = ("scalars", "rosenbrock", "linear", "tanh")
UNFIT = {"galore", "muon", "sm3"}  # for parameters that are single numbers
COMMON = {"sgd", "momentum", "adam", "adamw", "rmsprop", "lbfgs", "MultiSteps adamw"}


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param(name, marks=() if name in COMMON else pytest.mark.slow) for name in OPTIMIZERS],
)
def test_every_optimizer(optimizer):
    number = list(OPTIMIZERS).index(optimizer)
    model = PROBLEMS[number % 4] if optimizer not in UNFIT else "tanh"
    case = Case(model, optimizer, data=DATA[number % len(DATA)], steps=5)
    assert check(case, random.Random(number), ("record",)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "mode"),
    [*((dtype, "jit") for dtype in DTYPES), ("float32", "eager"), ("float32", "vmap")],
)
def test_every_dtype_and_mode(dtype, mode):
    number = DTYPES.index(dtype)
    case = Case("linear", "momentum", dtype, "minibatches", mode, aux=True, features=8, steps=5)
    assert check(case, random.Random(number), ("record",)) == []


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_run_with_carry_and_evaluations(way):
    case = Case("scalars", "momentum", data="minibatches", carry=True, steps=5)
    assert check(case, random.Random(1), (way,)) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3])
def test_evaluations_by_functions_that_llvm_computes_several_at_a_time(number):
    case = Case("tanh", "momentum", data="minibatches", carry=True, aux=True, steps=5)
    assert check(case, random.Random(number), ("fit",)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        # Each was found by the fuzzer, and fails where what its comment names is taken out.
        Case("scalars", "adam"),  # guards of products
        Case("linear", "adamw", features=17),  # the sort: a matrix times a vector
        Case("transposed", "momentum", features=2),  # sums by rows
        Case("scaled", "momentum", features=8),  # the sort: sums over two axes
        Case(
            "linear", "sgd", features=2, examples=33
        ),  # the sort: a sum of a dot product, recorded
        Case("product", "radam"),  # constants that are hidden from XLA
        Case("tanh", "prodigy", features=8, data="minibatches", steps=20),  # of small results
        Case("silu", "apply_if_finite", mode="vmap", data="noise", features=2),  # and of choices
        Case("convolution", "flatten", mode="eager", data="function"),
        Case("wide", "MultiSteps adamw", data="minibatches", steps=5),
        Case("recurrent", "adam", steps=5),
        Case("linear", "adam", carry=True, aux=True),
    ],
    ids=lambda case: f"{case.model} {case.optimizer} {case.mode}",
)
def test_what_was_found(case):
    assert check(case, random.Random(0), ("record", "resume")) == []

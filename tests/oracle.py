"""Tell whether a change of the code changes what it computes, or the programs it compiles.

    python -m tests.oracle record before.json
    python -m tests.oracle compare before.json

takes a table of runs (problems, optimizers, ways to run) and keeps two checksums of each: one of
the programs with a loop that XLA is given, without names and addresses, and one of the bytes of
the result. Record before a change that must change nothing, and compare after it, on the same
machine with the same version of JAX.
"""

import argparse
import json
import pathlib
import re
import sys
import tempfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit
from tests.common import guess, loss, perceptron

STEPS = 11
slope = jnp.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [4.0, 1.0]]), jnp.array([1.0, 3.5, 5.0, 9.0])
OPTIMIZERS = {
    "sgd": lambda lr: optax.sgd(lr),
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True),
    "adam": lambda lr: optax.adam(optax.exponential_decay(lr, 1, 0.9)),
    "adamw": lambda lr: optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(lr)),
    "multi": lambda lr: optax.MultiSteps(optax.adam(lr), 2),
    "lbfgs": lambda lr: optax.lbfgs(),
}


def valley(params, batch):
    """Evaluate Rosenbrock's function, of parameters of which one is not trained."""
    x, y = params["x"], params["y"]
    return jnp.mean((params["n"] - x) ** 2 + batch * (y - x**2) ** 2)


def problems() -> dict[str, tuple[Any, Any, Any]]:
    """Return losses, parameters and data by name."""
    start = {"x": jnp.array(-1.0), "y": jnp.array([1.0, 0.5]), "n": 1}
    return {
        "line": (loss, guess, slope),
        "valley": (valley, start, jnp.array([10.0, 12.0])),
        "perceptron": perceptron(),
    }


def ways(loss: Any, start: Any, data: Any, make: Any) -> dict[str, Any]:
    """Return by name what runs a problem in one way: functions without arguments."""
    optimizer = make(0.05)
    seen = {"data": data, "has_aux": False}

    def with_aux(params, batch):
        value = loss(params, batch)
        return value, {"twice": 2 * value}

    def train(loss=loss, start=start, steps=STEPS, **options):
        return jax.jit(lambda: jaxfit.train(loss, start, optimizer, steps, **seen | options))()

    fit = lambda **options: jaxfit.fit(
        loss, start, optimizer, STEPS, progress=False, **seen | options
    )
    frames = lambda: train(keyframe_every=4, record=jaxfit.record.metrics)
    minibatches = jaxfit.minibatches(slope, 2, jax.random.key(3))

    def final(lr):
        run = jaxfit.train(loss, start, make(lr), STEPS, data=data)
        return run.trajectory["loss"], run.trajectory["params"]

    def part():
        run = frames()
        return jaxfit.replay(loss, run, optimizer, 3, 9, record=jaxfit.record.state, data=data)

    table = {
        "train": train,
        "train, sparse": lambda: train(record_every=3, record=jaxfit.record.metrics),
        "train, keyframes": frames,
        "train, aux": lambda: train(with_aux, has_aux=True, record=lambda step: step),
        "train, eager": lambda: jaxfit.train(loss, start, optimizer, 3, data=data),
        "resumed": lambda: train(start=train(steps=4).state, steps=7),
        "gradient": lambda: jax.jit(jax.grad(lambda rate: final(rate)[0].sum()))(0.05),
        "replay": part,
        "at": lambda: jaxfit.at(loss, frames(), optimizer, 6, data=data),
        "fit": fit,
        "fit, sparse": lambda: fit(record_every=4, chunk_size=4, record=jaxfit.record.metrics),
        "fit, rule": lambda: fit(stop=lambda step: step.step >= 6, chunk_size=4),
        "fit, patience": lambda: fit(stop=jaxfit.stop.no_improvement(2, 1e9), chunk_size=3),
        "sweep": lambda: jaxfit.sweep(final, {"lr": np.float32([0.01, 0.05, 0.1])}).values,
        "sweep, alone": lambda: (
            jaxfit.sweep(final, {"lr": np.float32([0.01, 0.05])}, batch_size=1).values
        ),
    }
    if data is slope:
        table["train, minibatches"] = lambda: train(data=minibatches)
        table["fit, minibatches"] = lambda: fit(data=minibatches, chunk_size=5)
    return table


def checksum(tree: Any) -> int:
    """Return a checksum of a result's dtypes, shapes and bytes."""
    if isinstance(tree, jaxfit.Run):
        tree = tree.steps, tree.trajectory, tree.keyframes, tree.state
    total = 0
    for leaf in jax.tree.leaves(tree):
        leaf = np.asarray(leaf)
        total = zlib.crc32(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes(), total)
    return total


def text(module: str) -> str:
    """Return a program without what is but a name in it, or the place that it comes from."""
    module = re.sub(r"^#loc.*\n", "", module, flags=re.MULTILINE)
    module = re.sub(
        r'jax\.(arg_info|result_info) = "[^"]*",? ?|loc\([^)]*\)|0x[0-9a-f]+', "", module
    )
    names: dict[str, str] = {}
    symbol = lambda found: names.setdefault(found.group(), f"@{len(names)}")
    return re.sub(r"@[\w$.-]+|(?<=module )@\S+", symbol, module)


def observe(way: Any) -> dict[str, Any]:
    """Run, and return the checksums of the programs with loops and of the result."""
    with tempfile.TemporaryDirectory() as folder:
        jax.clear_caches()
        jax.config.update("jax_dump_ir_to", folder)
        try:
            result = checksum(way())
        finally:
            jax.config.update("jax_dump_ir_to", None)
        texts = [text(path.read_text()) for path in pathlib.Path(folder).glob("*.mlir")]
    programs = sorted({zlib.crc32(one.encode()) for one in texts if "stablehlo.while" in one})
    return {"programs": programs, "result": result}


def main(arguments: Any = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--only", default="", help="a part of the names of the runs to take")
    chosen = parser.parse_args(arguments)
    kept = json.loads(chosen.file.read_text()) if chosen.what == "compare" else {}
    found, differ = {}, 0
    for problem, ingredients in problems().items():
        for name, make in OPTIMIZERS.items():
            for way, run in ways(*ingredients, make).items():
                label = f"{problem}/{name}/{way}"
                if chosen.only not in label:
                    continue
                found[label] = observe(run)
                if kept and kept[label] != found[label]:
                    parts = [key for key in found[label] if found[label][key] != kept[label][key]]
                    print(f"{label}: other {' and '.join(parts)}", flush=True)
                    differ += 1
    if chosen.what == "record":
        chosen.file.write_text(json.dumps(found, indent=1))
    print(f"{len(found)} runs, {differ} differ")
    return differ > 0


if __name__ == "__main__":
    sys.exit(main())

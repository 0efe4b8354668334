"""Small problems, and what it means that two results are the same."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import jaxfit
from jaxfit.losses import mse, objective
from jaxfit.models import linear

loss = objective(linear, mse)  # the lesson's
guess = jnp.array([-1.0, 1.0])

TILES = "jit(run_tiles)"  # the program of a sweep
compiled = []  # the names of the programs that XLA has compiled so far
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, fun_name="", **_: (
        compiled.append(fun_name) if "backend_compile" in event else None
    )
)


def assert_same_bits(one, other):
    """Every bit of every array is the same; NaNs too."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        left, right = (np.asarray(_without_keys(leaf)) for leaf in (left, right))
        assert (left.dtype, left.shape) == (right.dtype, right.shape), jax.tree_util.keystr(path)
        assert left.tobytes() == right.tobytes(), jax.tree_util.keystr(path)


def _without_keys(leaf):
    typed = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if typed else leaf


def assert_close(one, other, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def assert_pictures(folder, names, printed):
    """A study wrote these pictures, there is something in them, and it said so."""
    pictures = {path.stem: path for path in folder.iterdir()}
    assert set(pictures) == set(names)
    for path in pictures.values():
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 300
            assert len(image.convert("RGB").getcolors(image.width * image.height)) > 100
        assert str(path) in printed


def assert_refuses(capsys, sentence, command, *arguments):
    """A study ends with one sentence on what is wrong with the arguments."""
    with pytest.raises(SystemExit) as refused:
        command(*arguments)
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert re.match(sentence, said)
    assert said.count("\n") == 1 and said.endswith(".\n")


def row(tree, t):
    return jax.tree.map(lambda leaf: leaf[t], tree)


def concatenate(*trees):
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def perceptron():
    """A small classifier on batches that are scaled on the way: a loss, parameters, data."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 3, 64), jnp.int32)

    def loss(params, batch):
        inputs, labels = batch
        logits = jaxfit.models.mlp(params, inputs)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def data(step):
        rows = (7 * step + 5 * jnp.arange(16)) % 64
        return 1.1 * x[rows] + 0.1, y[rows]

    return loss, jaxfit.models.mlp_init(jax.random.key(4), (8, 12, 3)), data


def process(code, *arguments, **environment):
    """Start Python with some code and arguments."""
    root = pathlib.Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def two_processes(code, *arguments, ends=(0, 0)):
    """What two say who work together; they are given an address and which they are, too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    said = []
    with process(code, *arguments, address, 0) as one, process(code, *arguments, address, 1) as two:
        for running, end in zip((one, two), ends, strict=True):
            out, complaint = running.communicate(timeout=300)
            assert running.returncode == end, complaint
            said.append((out, complaint))
    return said

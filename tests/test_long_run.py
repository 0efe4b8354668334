"""The study of a long run kills it, goes on, and says what is true."""

import bz2
import functools
import json
import math
import pathlib
import re
import shutil
import sys
from collections import Counter

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _long_run_network, _long_run_text, long_run
from jaxfit.data import __file__ as some_python
from tests.common import assert_pictures, assert_refuses


@pytest.fixture
def library(tmp_path):
    """Little to read."""
    folder = tmp_path / "library"
    folder.mkdir()
    text = pathlib.Path(some_python).read_text()
    for name, part in {"a": text[:9000], "b": text[9000:], "c": text[: len(text) // 5]}.items():
        (folder / f"{name}.py").write_text(part)
    return folder


@pytest.fixture
def study(command, library):
    return functools.partial(command, long_run, "--width", 8, "--text", library)


@pytest.mark.slow
def test_the_run_is_killed_and_goes_on_to_its_picture(study, library, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # in the processes that train, too
    printed, out = study("--minutes", 0.005, "--kills", 1), tmp_path / "out"
    number = len((library / "c.py").read_text())
    assert re.match(rf"\d+ characters to train on, {number} held out; \d+ parameters\n", printed)
    (killed,) = re.findall(r"killed at step ~(\d+), committed up to step (\d+)\n", printed)
    guess, kill = map(int, killed)
    assert 200 <= kill <= guess <= kill + 400 and kill % 200 == 0
    assert re.findall(r"goes on from step (\d+)\n", printed) == ["0", str(kill)]
    ((steps, times),) = re.findall(r"(\d+) steps in [\d.]+ minutes, kills: (\d)", printed)
    assert int(steps) > kill and times == "1"
    first, last = re.findall(r"step (\d+) writes:\n +\|     def .*\n", printed)
    assert 200 <= int(first) <= int(last) == int(steps)
    assert f"50 of the 50 losses of the steps {kill - 25} to\n{kill + 24}, around" in printed
    bits = dict(re.findall(r"(?m)^  (\w.*?) +(\d\.\d{3})$", printed))
    assert list(bits) == [*REFERENCES, "this network"]
    assert float(bits["uniform"]) == pytest.approx(math.log2(97), abs=1e-3)

    log = json.loads((out / "log.json").read_text())
    assert log["seconds"] >= 0.3 and log["kills"] == [kill]
    assert long_run.committed(out) == int(steps)
    for path in ("run", "train.bin", "held_out.bin", "log.json"):
        (shutil.rmtree if path == "run" else pathlib.Path.unlink)(out / path)
    assert_pictures(out, {"loss"}, printed)


REFERENCES = ("uniform", "single characters", "after two characters", "xz -9", "bzip2 -9")


def test_codes_are_those_of_the_text_but_for_odd_characters(library, tmp_path):
    assert _long_run_text.decode(_long_run_text.encode("if x:\n\t'é~'")) == "if x:\n?'?~'"
    _long_run_text.write_texts(tmp_path, library)
    train, held = map(_long_run_text.decode, _long_run_text.texts(tmp_path))
    read = lambda name: (library / f"{name}.py").read_text()
    clean = lambda text: re.sub(r"[^\n -~]", "?", text)
    assert (train, held) == (clean(read("a") + read("b")), clean(read("c")))


def test_references_are_what_they_are_by_hand():
    train, held = (
        _long_run_text.encode(text) for text in ("abracadabra\n" * 20, "abra cadabra\n" * 5)
    )
    known = _long_run_text.references(train, held)
    assert tuple(known) == REFERENCES
    for order, name in (0, "single characters"), (2, "after two characters"):
        pairs, contexts, bits = Counter(), Counter(), 0.0
        for text in (train, held):
            text = [0] * order + text.tolist()
            for n in range(order, len(text)):
                context, code = tuple(text[n - order : n]), text[n]
                if len(text) == len(train) + order:
                    pairs[context, code] += 1
                    contexts[context] += 1
                else:
                    bits -= math.log2((pairs[context, code] + 1) / (contexts[context] + 97))
        assert known[name] == pytest.approx(bits / len(held))
    assert known["bzip2 -9"] == 8 * len(bz2.compress(held.tobytes())) / len(held)


def test_bits_of_the_held_out_text_are_of_every_character_once():
    model = _long_run_network.network(jax.random.key(0), 8)
    text = np.random.default_rng(0).integers(0, 97, 150).astype(np.uint8)
    padded, bits = np.concatenate([np.zeros(64, int), text]), []
    advance = eqx.filter_jit(_long_run_network.advance)
    for first in 0, 64, 128:  # each scores the 64 characters after its first 64
        hidden = jnp.zeros(8)
        for n in range(first, min(first + 127, len(padded) - 1)):
            hidden = advance(model, hidden, padded[n])
            if n + 1 >= first + 64:
                bits.append(-jax.nn.log_softmax(model["out"](hidden))[padded[n + 1]] / np.log(2))
    assert len(bits) == len(text)
    assert _long_run_network.held_out_bits(model, text) == pytest.approx(
        float(np.mean(bits)), rel=1e-5
    )


def test_a_module_takes_the_leaves_that_were_loaded_by_their_names():
    model = _long_run_network.network(jax.random.key(0), 4)
    dicts = {name: dict(sorted(vars(part).items())) for name, part in model.items()}
    blank = jax.tree.map(jnp.zeros_like, model)
    assert eqx.tree_equal(_long_run_network.restore_modules(blank, dicts), model)


REFUSED = {
    "no time": (("--minutes", 0), "--minutes is 0, but must be more than 0"),
    "nan": (("--minutes", "nan"), "--minutes is nan, but must be more than 0"),
    "kills": (("--kills", -1), "--kills is -1, but must be from 0 to 100"),
    "width": (("--width", 0), "--width is 0, but must be from 1 to 4096"),
    "seed": (("--seed", 2**31), "--seed is 2147483648, but must be less than"),
    "out": (("--out", __file__), ".*test_long_run.py cannot be written: File exists"),
    "no text": (("--text", "."), r"\. has too little text: give a folder of more \.py files"),
    "another": (("--out", "kept"), "kept holds a run with --seed 1 --width 8: give these, or"),
    "no equinox": ((), r"Equinox is not installed.*: run pip install -e \"\.\[test\]\""),
    "no orbax": ((), r"orbax-checkpoint is not installed.*: run pip install -e \"\.\[test\]\""),
}


@pytest.mark.parametrize(("what", "arguments", "sentence"), [(k, *v) for k, v in REFUSED.items()])
def test_a_mistake_is_answered_by_one_sentence(
    study, tmp_path, monkeypatch, capsys, what, arguments, sentence
):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "log.json").write_text('{"seed": 1, "width": 8}')
    monkeypatch.chdir(tmp_path)
    if what.startswith("no ") and not arguments:
        module = {"no equinox": "equinox", "no orbax": "orbax.checkpoint"}[what]
        monkeypatch.setitem(sys.modules, module, None)
    assert_refuses(capsys, f"long_run: {sentence}", study, *arguments)

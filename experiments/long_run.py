"""A language model of Python's own sources, trained by a process that is killed and goes on.

A recurrent network made of Equinox modules learns the standard library, character by character,
from a file that is mapped into memory. ``jaxfit.fit`` trains it in another process and commits the
run to a directory, 200 steps at a time. This one kills that process with SIGKILL at random moments
and starts it again, which goes on from the last commit; it reads samples from the directory
meanwhile, and when the time is up it sends SIGINT, at which ``fit`` commits and returns. Called
again with more minutes it goes on. At the end, steps around the last kill are replayed in one piece
and compared with those on disk, bit for bit.

Three minutes on a 2-core AMD EPYC, of which the time to start and compile does not count: 7,000
steps on jax 0.10.2 and 7,800 on 0.12.0, with two kills, to 2.00 and 2.04 bits per character of the
last modules by name, which it has not seen, and 1.70 and 1.69 of those it has (of Python 3.11.7 and
3.13.0). Counts of three characters give 2.76 and 2.81. It has learned to indent, and not what to
say: xz, which learns from the unseen modules as it goes, needs only 1.69 and 1.71. All 50 losses
that were replayed had the bits of those on disk.
"""

from __future__ import annotations

import argparse
import bz2
import functools
import json
import lzma
import os
import pathlib
import re
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import lax

import jaxfit
from experiments import _command
from experiments.digits import needed
from jaxfit.plot.static import BLACK, BLUE, ORANGE

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # a code each, and one for all others
CODES = len(CHARACTERS) + 1
CONTEXT, BATCH_SIZE, RATE = 64, 32, 0.003
CHUNK = 200  # steps that are committed at once: about five seconds
STEPS = 10_000_000  # more than there is time for
SAMPLE_EVERY = 30  # seconds
PROMPT, TEMPERATURE = "\n    def ", 0.7


def encode(text: str) -> np.ndarray:
    """The codes of characters, uint8."""
    table = np.full(128, CODES - 1, np.uint8)
    table[[ord(character) for character in CHARACTERS]] = range(len(CHARACTERS))
    return table[np.minimum(np.frombuffer(text.encode("utf-32-le"), "<u4"), 127)]


def decode(codes: Any) -> str:
    """The text of codes, with a question mark for what has none of its own."""
    return "".join((CHARACTERS + "?")[code] for code in np.asarray(codes))


def write_texts(out: pathlib.Path, library: pathlib.Path) -> None:
    """Write a folder's modules as codes to two files: the last tenth of them is held out."""
    files = [path.read_text("utf-8", "replace") for path in sorted(library.glob("*.py"))]
    ends = np.cumsum([0, *map(len, files)])
    cut = int(np.searchsorted(ends, 0.9 * ends[-1], side="right")) - 1
    if ends[cut] <= CONTEXT:
        raise ValueError(f"{library} has too little text: give a folder of more .py files.")
    for name, part in ("held_out", files[cut:]), ("train", files[:cut]):
        encode("".join(part)).tofile(out / f"{name}.bin")


def texts(out: pathlib.Path) -> list[np.ndarray]:
    """The codes to train on, and those held out, on disk."""
    return [np.memmap(out / f"{name}.bin", np.uint8, "r") for name in ("train", "held_out")]


def network(key: jax.Array, width: int) -> dict[str, Any]:
    """A recurrent network: modules of Equinox, which are parameters as they are."""
    nn, keys = needed("equinox", "Equinox").nn, jax.random.split(key, 3)
    return {
        "embed": nn.Embedding(CODES, 64, key=keys[0]),
        "cell": nn.GRUCell(64, width, key=keys[1]),
        "out": nn.Linear(width, CODES, key=keys[2]),
    }


def advance(model: Any, hidden: jax.Array, code: jax.Array) -> jax.Array:
    """The network's state after one more character."""
    return model["cell"](model["embed"](code), hidden)


def nats(model: Any, codes: jax.Array) -> jax.Array:
    """Minus the log-likelihood of every character but the first, each given those before it."""
    codes = codes.astype(jnp.int32)
    step = lambda hidden, code: (advance(model, hidden, code),) * 2
    _, hidden = lax.scan(step, jnp.zeros(model["cell"].hidden_size), codes[:-1])
    logits = jax.vmap(model["out"])(hidden)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, codes[1:])


def loss(model: Any, windows: jax.Array) -> jax.Array:
    return jnp.mean(jax.vmap(functools.partial(nats, model))(windows))


def problem(out: pathlib.Path, seed: int, width: int) -> tuple[Any, Any, Any, Any]:
    """What is trained: a loss, where it starts, an optimizer, batches of the text on disk."""
    text, _ = texts(out)

    def windows(step):
        random = np.random.default_rng([seed % 2**32, step])
        return text[random.integers(0, len(text) - CONTEXT, BATCH_SIZE)[:, None] + places]

    places = np.arange(CONTEXT + 1)
    rate = optax.linear_schedule(0, RATE, 100)  # constant after that: nobody knows the end
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    start = network(jax.random.key(seed), width)
    return loss, start, optimizer, jaxfit.host_batches(windows)


def fit(problem: tuple[Any, Any, Any, Any], out: pathlib.Path, steps: int) -> jaxfit.Run:
    """Train from where the directory stands; with the steps that it has, the run that it holds."""
    loss, start, optimizer, data = problem
    return jaxfit.fit(
        loss,
        start,
        optimizer,
        steps,
        data=data,
        record=lambda step: step.loss,
        chunk_size=CHUNK,
        checkpoint_dir=out / "run",
        progress=False,
    )


def work(arguments: argparse.Namespace) -> None:
    """Train until interrupted, by SIGINT or by the end of the process that started this one."""

    def guard():
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=guard, daemon=True).start()
    try:
        fit(problem(arguments.out, arguments.seed, arguments.width), arguments.out, STEPS)
    except RuntimeError as error:  # another process has the directory
        raise ValueError(str(error)) from error
    except KeyboardInterrupt:  # before the first step
        pass


@functools.partial(jax.jit, static_argnums=2)
def sample(model: Any, key: jax.Array, length: int = 200) -> jax.Array:
    """The codes of a text that the network makes up."""
    given = jnp.concatenate([encode(PROMPT).astype(np.int32), jnp.full(length, -1)])

    def write(carry, place):
        hidden, code = carry
        hidden = advance(model, hidden, code)
        drawn = jax.random.categorical(
            jax.random.fold_in(key, place), model["out"](hidden) / TEMPERATURE
        )
        code = jnp.where(given[place] < 0, drawn, given[place])
        return (hidden, code), code

    start = jnp.zeros(model["cell"].hidden_size), jnp.int32(0)
    return lax.scan(write, start, jnp.arange(len(given)))[1]


def hung(model: Any, loaded: Any) -> Any:
    """A model with the leaves that ``jaxfit.load`` read, where modules are dicts."""
    name = lambda key: getattr(key, "name", None) or key.key
    find = lambda path, _: functools.reduce(lambda node, key: node[name(key)], path, loaded)
    return jax.tree.map_with_path(find, model)


def committed(out: pathlib.Path) -> int:
    """The step up to which the run is safe; -1 if there is none."""
    names = [path.name for path in (out / "run").glob("*")]
    return max(
        (int(name[11:]) for name in names if re.fullmatch(r"\d{10}-\d{10}", name)), default=-1
    )


def say(seconds: float, what: str) -> None:
    print(f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}  {what}", flush=True)


def show(seconds: float, model: Any, loaded: Any, key: jax.Array) -> None:
    """Print a sample of a run that was loaded."""
    say(seconds, f"step {int(loaded.state.step)} writes:")
    text = decode(sample(hung(model, loaded.state.params), key)).strip("\n")
    print(textwrap.indent(text, "        | ", lambda line: True), flush=True)


def train(arguments: argparse.Namespace, log: dict[str, Any], start: Any) -> None:
    """Train in other processes until the time is up, and kill some; keep the log up to date."""
    out, end = arguments.out, 60 * arguments.minutes
    random = np.random.default_rng([arguments.seed % 2**32, 2**32 - 1])
    parts = np.sort(random.uniform(0.1, 0.9, arguments.kills))
    moments = [*(log["seconds"] + parts * (end - log["seconds"])), end]
    key, sampled = jax.random.key(arguments.seed), -SAMPLE_EVERY
    command = [sys.executable, "-m", "experiments.long_run", "--worker", "--out", out.resolve()]
    command += ["--seed", str(arguments.seed), "--width", str(arguments.width)]
    for moment in moments:
        before, begun, since = max(committed(out), 0), None, 0.0
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "start_new_session": True}
        root = pathlib.Path(__file__).parents[1]
        with subprocess.Popen(command, cwd=root, **options) as process:
            at, seconds, interrupted = before, log["seconds"], False
            try:
                while process.poll() is None and (begun is None or seconds < moment):
                    time.sleep(0.02)
                    now, step = time.perf_counter(), committed(out)
                    if step > at:
                        at, since = step, now
                    if begun is None and at > before:  # starting and compiling are not training
                        begun = now
                        say(seconds, f"process {process.pid} goes on from step {before}")
                    seconds = log["seconds"] + (now - begun if begun else 0)
                    if begun and seconds - sampled >= SAMPLE_EVERY:
                        sampled = seconds
                        show(seconds, start, jaxfit.load(out / "run"), key)
            except KeyboardInterrupt:
                interrupted = True
            if process.poll() is not None:  # it has said why
                raise SystemExit(process.returncode or 1)
            if killed := moment != end and not interrupted:
                process.kill()
                late = time.perf_counter() - since
            else:
                process.send_signal(signal.SIGINT)
            process.wait()
        at = committed(out)
        if killed:
            guess = at + min(int(late * at / max(seconds, late)), 2 * CHUNK)
            say(
                seconds, f"process {process.pid} killed at step ~{guess}, committed up to step {at}"
            )
            log["kills"].append(at)
        log["seconds"] = seconds
        (out / "log.json").write_text(json.dumps(log))
        if interrupted:
            break


def held_out_bits(model: Any, text: np.ndarray) -> float:
    """Bits per character, each given the 64 to 127 before it, at the beginning blank lines."""
    blank = np.zeros(CONTEXT, np.uint8)
    padded = np.concatenate([blank, text, blank])
    number = -(-len(text) // CONTEXT)
    windows = padded[CONTEXT * np.arange(number)[:, None] + np.arange(2 * CONTEXT)]
    one = lambda window: nats(model, window)[-CONTEXT:]
    losses = jax.jit(lambda windows: lax.map(one, windows, batch_size=256))(windows)
    return float(np.mean(np.asarray(losses, np.float64).ravel()[: len(text)]) / np.log(2))


def ngram_bits(train: np.ndarray, held: np.ndarray, order: int) -> float:
    """Bits per character of the held-out text by counts of the other, plus one each."""

    def numbers(text):
        padded = np.concatenate([np.zeros(order, int), text])
        return sum(padded[n : n + len(text)] * CODES ** (order - n) for n in range(order + 1))

    counts = 1 + np.bincount(numbers(train), minlength=CODES ** (order + 1)).reshape(-1, CODES)
    likely = counts / counts.sum(axis=1, keepdims=True)
    return float(-np.mean(np.log2(likely.ravel()[numbers(held)])))


def references(train: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """Bits per character of the held-out text by simpler means."""
    code = held.tobytes()
    return {
        "uniform": float(np.log2(CODES)),
        "single characters": ngram_bits(train, held, 0),
        "after two characters": ngram_bits(train, held, 2),
        "xz -9": 8 * len(lzma.compress(code, preset=9)) / len(code),
        "bzip2 -9": 8 * len(bz2.compress(code, 9)) / len(code),
    }


def draw(losses: np.ndarray, log: dict[str, Any], found: float, known: dict[str, float]) -> Any:
    """The loss over the steps, beside references; where the process was killed."""
    figure, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    width = min(100, len(losses))
    smooth = np.convolve(losses, np.full(width, 1 / width), "valid")
    ax.plot(losses, color=BLUE, alpha=0.25, linewidth=0.5)
    places = np.arange(len(smooth)) + (width - 1) / 2
    ax.plot(places, smooth, color=BLUE, label=f"training, mean of {width} steps")
    ax.plot(
        len(losses),
        found,
        "o",
        color=BLACK,
        label=f"held-out text, at the end: {found:.2f}",
        clip_on=False,
    )
    for number, step in enumerate(log["kills"]):
        label = "killed, and gone on from here" if number == 0 else None
        ax.axvline(step, color=ORANGE, linewidth=1.2, linestyle="--", label=label)
    height = np.inf
    for name, value in sorted(known.items(), key=lambda item: -item[1]):
        ax.axhline(value, color="0.45", linewidth=0.8, linestyle=":")
        height = min(value, height - 0.3)  # room for a line of text
        style = {"va": "center", "color": "0.25", "transform": ax.get_yaxis_transform()}
        ax.text(1.02, height, f"{name} {value:.2f}", **style)
    ax.set(xlabel="step", ylabel="bits per character", xlim=(0, len(losses)))
    ax.set(ylim=(0, 1.05 * max(known.values())), title="A run that was killed and went on")
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
    return figure


def same_again(problem: Any, run: jaxfit.Run, step: int) -> None:
    """Replay the steps around one where a process went on, and compare them with those on disk."""
    loss, _, optimizer, data = problem
    first, last = max(step - 25, 0), min(step + 25, len(run.steps))
    record = lambda step: step.loss
    part = jaxfit.replay(loss, run, optimizer, first, last, data=data, record=record)
    again, kept = np.asarray(part.trajectory), run.trajectory[first:last]
    same = np.sum(again.view(np.uint32) == kept.view(np.uint32))
    print(f"\nReplayed in one piece, {same} of the {last - first} losses of the steps {first} to")
    print(f"{last - 1}, around the kill at {step}, are those on disk, bit for bit.")


def study(arguments: argparse.Namespace) -> None:
    """Train, and print and draw how far it came."""
    needed("orbax.checkpoint", "orbax-checkpoint")
    out = arguments.out
    log = {"seed": arguments.seed, "width": arguments.width, "seconds": 0.0, "kills": []}
    if (out / "log.json").exists():
        log = json.loads((out / "log.json").read_text())
    else:
        write_texts(out, arguments.text)
    if (log["seed"], log["width"]) != (arguments.seed, arguments.width):
        raise ValueError(
            f"{out} holds a run with --seed {log['seed']} --width {log['width']}: "
            f"give these, or another --out."
        )
    given = problem(out, arguments.seed, arguments.width)
    text, held = texts(out)
    known = references(text, held)
    size = sum(leaf.size for leaf in jax.tree.leaves(given[1]))
    print(f"{len(text)} characters to train on, {len(held)} held out; {size} parameters\n")
    if log["seconds"] < 60 * arguments.minutes:
        (out / "log.json").write_text(json.dumps(log))
        train(arguments, log, given[1])
    steps = committed(out)
    if steps < 1:
        raise ValueError("the run was interrupted before its first steps were committed.")

    run = fit(given, out, steps)  # which is what is on disk, its modules modules again
    show(log["seconds"], given[1], jaxfit.load(out / "run"), jax.random.key(arguments.seed))
    losses = np.asarray(run.trajectory) / np.log(2)
    found = held_out_bits(run.state.params, held)
    print(f"\n{steps} steps in {log['seconds'] / 60:.1f} minutes, {len(log['kills'])} times killed")
    print("\nbits per character of the held-out text")
    for name, value in [*known.items(), ("this network", found)]:
        print(f"  {name:24}{value:6.3f}")
    print(f"of the training text, the last {len(losses[-500:])} steps")
    print(f"  {'this network':24}{losses[-500:].mean():6.3f}")
    for step in log["kills"][-1:]:
        same_again(given, run, step)
    print("\nWritten:")
    draw(losses, log, found, known).savefig(out / "loss.png", dpi=100)
    _command.written(out / "loss.png")


def main() -> None:
    parser = _command.parser("long_run", __doc__)
    parser.add_argument(
        "--minutes",
        type=float,
        default=3.0,
        help="of training in all, default 3; call again with more to go on",
    )
    parser.add_argument(
        "--kills", type=int, default=2, help="how often to kill the process, default 2"
    )
    parser.add_argument("--width", type=int, default=256, help="of the network, default 256")
    parser.add_argument(
        "--text",
        type=pathlib.Path,
        default=pathlib.Path(sysconfig.get_paths()["stdlib"]),
        metavar="DIR",
        help="a folder of .py files to learn from, default the standard library",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)

    def train_and_show(arguments: argparse.Namespace) -> None:
        if not arguments.minutes > 0:
            raise ValueError(f"--minutes is {arguments.minutes:g}, but must be more than 0.")
        _command.between("kills", arguments.kills, 0, 100)
        _command.between("width", arguments.width, 1, 4096)
        (work if arguments.worker else study)(arguments)

    _command.run(parser, train_and_show)


if __name__ == "__main__":
    main()

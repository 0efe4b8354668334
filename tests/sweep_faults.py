"""Sweeps that are killed or cannot write, each in a process forked before JAX starts its threads.

    python -m tests.sweep_faults DIRECTORY KILLS FAULT …

Every fault sweeps in DIRECTORY/FAULT until it dies of it; ``random_moments`` is KILLS processes one
after the other. Then another process makes the same call, and compares the result with one that
nothing disturbed. How each process ended is printed as a line of JSON.
"""

import json
import pathlib
import random
import resource
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit
from jaxfit._disk.sweeps import SweepDirectory
from tests.faults import die, end_of

COUNT = 300


def fn(optimizer, lr, key):
    """Train for about a millisecond."""
    start = jax.random.normal(key, (2,))
    run = jaxfit.train(lambda a: jnp.sum((a - 1.0) ** 2), start, optimizer(lr), 2000)
    return {"loss": run.trajectory["loss"][::100], "end": run.state.params}


def sweep(folder=None):
    """The sweep that all of these are parts of."""
    axes = {
        "lr": jnp.geomspace(1e-3, 0.5, COUNT // 5),
        "optimizer": {"sgd": optax.sgd},
        "key": jax.random.split(jax.random.key(0), 5),
    }
    return jaxfit.sweep(fn, axes, batch_size=1, checkpoint_dir=folder)


class Deadly:
    """An array that kills who writes to it."""

    write = die

    def __getitem__(self, _):
        return self


def before_it_is_done(folder, _):
    """Die when the arrays of a block are written, and its mark is not."""
    write, written = SweepDirectory._write, []

    def write_and_die(directory, arrays, box):
        written.append(box)
        if len(written) == 20:
            directory._marks = Deadly()
        write(directory, arrays, box)

    SweepDirectory._write = write_and_die
    sweep(folder)


def without_room(folder, _):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write, written = SweepDirectory._write, []

    def write_without_room(directory, arrays, box):
        written.append(box)
        if len(written) == 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
        write(directory, arrays, box)

    SweepDirectory._write = write_without_room
    sweep(folder)


def random_moments(folder, say):
    add = SweepDirectory.add

    def say_and_add(*arguments):
        SweepDirectory.add = add
        say("begun\n")
        add(*arguments)

    SweepDirectory.add = say_and_add
    sweep(folder)


def to_an_end(folder, say):
    there, opened = [], SweepDirectory.wanted

    def wanted(directory, batch_size):
        there.append(int((~directory.missing).sum()))
        return opened(directory, batch_size)

    SweepDirectory.wanted = wanted
    result = sweep(folder)
    undisturbed = sweep()
    for name, values in undisturbed.values.items():
        assert np.asarray(result.values[name]).tobytes() == values.tobytes(), name
    say(f"the same, of which {there[0]} blocks were there")


def main():
    base, kills, *faults = sys.argv[1:]
    moments = random.Random(0)
    for name in faults:
        folder = pathlib.Path(base) / name
        times = int(kills) if name == "random_moments" else 1
        for _ in range(times):  # in all, less time than the sweep takes
            end = end_of(globals()[name], folder, moments.uniform(0, 0.6 / times))
            print(json.dumps([name, *end]), flush=True)
        print(json.dumps(["after it", *end_of(to_an_end, folder, None)]), flush=True)


if __name__ == "__main__":
    main()

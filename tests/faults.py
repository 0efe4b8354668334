"""Runs that are killed or cannot write, each in a process forked before JAX starts its threads.

    python -m tests.faults DIRECTORY FAULT …

Every fault trains in DIRECTORY/FAULT until it dies of it; ``random_moments`` is 30 processes one
after the other. Then another process goes on from there to an end, and compares the run with one
that nothing disturbed. How each process ended is printed as a line of JSON.
"""

import json
import os
import pathlib
import random
import resource
import signal
import sys
import threading

import jax
import numpy as np
import optax
import orbax.checkpoint

import jaxfit
from jaxfit._disk.directory import Directory

OPTIMIZER = optax.sgd(0.01, momentum=0.9)


def fit(num_steps, folder=None, **options):
    """The run that all of these are parts of."""
    from tests.common import guess, loss  # which starts JAX

    def batch(step):
        rng = np.random.default_rng([0, step])
        return rng.normal(size=(10, 2)).astype("f"), rng.normal(size=10).astype("f")

    options = {"chunk_size": 24, "progress": False, "checkpoint_dir": folder, **options}
    return jaxfit.fit(loss, guess, OPTIMIZER, num_steps, data=jaxfit.host_batches(batch), **options)


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def in_the_first_chunk(folder, _):
    sys.modules["jaxfit._drive.chunks"].wait = die
    fit(300, folder)


def in_a_commit(folder, _):
    save, saved = orbax.checkpoint.AsyncCheckpointer.save, []

    def save_and_die(*arguments, **keywords):
        save(*arguments, **keywords)
        saved.append(1)
        if len(saved) == 5:
            die()

    orbax.checkpoint.AsyncCheckpointer.save = save_and_die
    fit(300, folder)


def before_it_is_renamed(folder, _):
    rename = os.rename

    def die_at_the_third(source, target, **keywords):
        if str(target).endswith("-0000000072"):
            die()
        return rename(source, target, **keywords)

    os.rename = os.replace = die_at_the_third
    fit(300, folder)


def without_room(folder, _):
    fit(48, folder)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    fit(300, folder)


def read_only(folder, _):
    fit(48, folder)
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
    assert jaxfit.load(folder).state.step == 48  # which needs no writing
    fit(300, folder)


def random_moments(folder, say):
    commit, commits = Directory.commit, []

    def say_and_commit(*arguments):
        commits.append(1)
        if len(commits) == 3:  # so that each process leaves a chunk, however slow the machine
            say("begun\n")
        commit(*arguments)

    Directory.commit = say_and_commit
    fit(10**6, folder)


def to_an_end(folder, say):
    folder.chmod(0o755)
    committed = int(jaxfit.load(folder).state.step)
    run = fit(committed + 50, folder)
    undisturbed = fit(committed + 50)
    assert not list(folder.glob("*tmp*"))  # what was half written is gone
    from tests.common import assert_same_bits

    assert_same_bits(jax.tree.map(np.asarray, run.trajectory), undisturbed.trajectory)
    assert_same_bits(run.state, undisturbed.state)
    assert_same_bits(
        jax.tree.map(np.asarray, jaxfit.load(folder).trajectory), undisturbed.trajectory
    )
    say(f"the same from {committed}")


def end_of(fault, folder, moment):
    """Run a fault, killed so long after it says that it has begun; how it ended."""
    reads, writes = os.pipe()
    if not (pid := os.fork()):
        said = ""
        with os.fdopen(writes, "w") as out:
            try:
                fault(folder, lambda text: print(text, end="", file=out, flush=True))
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            out.write(said)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as out:
        text = out.readline()
        if text == "begun\n":
            threading.Event().wait(moment)
            os.kill(pid, signal.SIGKILL)
        text += out.read()
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, text


def main():
    base, *faults = sys.argv[1:]
    moments = random.Random(0)
    jax.config.update("jax_disable_most_optimizations", True)  # half of the time is compiling
    for name in faults:
        folder = pathlib.Path(base) / name
        for _ in range(30 if name == "random_moments" else 1):
            end = end_of(globals()[name], folder, moments.uniform(0, 0.3))
            print(json.dumps([name, *end]), flush=True)
        print(json.dumps(["after it", *end_of(to_an_end, folder, None)]), flush=True)


if __name__ == "__main__":
    main()

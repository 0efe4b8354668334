"""What all tests share: two CPU devices, no windows, and the lesson's problem."""

import jax
import matplotlib
import matplotlib.pyplot as plt
import pytest

import jaxfit

jax.config.update("jax_num_cpu_devices", 2)
matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


# What looks at bits or at programs as users have them.
OPTIMIZED = "bits fit nist readme replay sweep train unit".split()


@pytest.fixture(scope="module", autouse=True)
def _less_optimized(request):
    """Save a third of the time of other tests, which goes into compiling."""
    wanted = request.module.__name__.removeprefix("tests.test_") not in OPTIMIZED
    if jax.config.values["jax_disable_most_optimizations"] != wanted:
        jax.config.update("jax_disable_most_optimizations", wanted)
        jax.clear_caches()  # of programs of other tests, whose last bits may be others


@pytest.fixture(scope="session")
def line():
    """x [100, 2] and y [100] of the lesson."""
    return jaxfit.data.line(jax.random.key(0))


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run a study as from the command line, its pictures in "out"; return what it printed."""

    def run(module, *arguments):
        options = ["--out", tmp_path / "out", *arguments]
        monkeypatch.setattr("sys.argv", [module.__name__, *map(str, options)])
        module.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """IPython as a notebook has it, without a browser: what was to be displayed."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import RichOutput, capture_output

    shell = InteractiveShell.instance()
    shell.kernel = None  # by which a notebook is told from a terminal

    with capture_output() as captured:
        yield lambda: [output for output in captured.outputs if isinstance(output, RichOutput)]
    shell.clear_instance()

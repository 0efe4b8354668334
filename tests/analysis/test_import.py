"""Analysis and plot are loaded when they are first used, and optional packages later still."""

import subprocess
import sys

import pytest

from jaxfit import analysis


def test_they_are_loaded_when_they_are_used():
    program = (
        "import sys, jaxfit; assert 'jaxfit.analysis' not in sys.modules;"
        "jaxfit.analysis.curvature; assert 'jaxfit.analysis' in sys.modules;"
        "assert not {'matfree', 'xarray', 'matplotlib'} & set(sys.modules); jaxfit.plot.loss"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_matfree_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matfree", None)
    with pytest.raises(ImportError, match=r'pip install "jaxfit-train\[analysis\]"'):
        analysis.curvature(lambda a: a**2, 1.0)


def test_all_public_names_are_there():
    assert all(hasattr(analysis, name) for name in analysis.__all__)

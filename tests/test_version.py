"""The version is that of the installed distribution."""

import importlib.metadata
import runpy

import jaxfit
from jaxfit import _version


def test_the_version_is_that_of_the_distribution():
    assert jaxfit.__version__ == importlib.metadata.version("jaxfit-train")


def test_a_checkout_that_is_not_installed_has_a_version(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert runpy.run_path(_version.__file__)["__version__"] == "0+unknown"

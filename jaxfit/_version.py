"""The version of jaxfit that is running."""

import importlib.metadata

try:
    __version__ = importlib.metadata.version("jaxfit-train")
except importlib.metadata.PackageNotFoundError:  # imported from a checkout that is not installed
    __version__ = "0+unknown"

"""The version of fastclip: packaging reads it here, and `fastclip.__version__` is it."""

__version__ = "0.2.0"

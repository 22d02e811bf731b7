"""The version, where what is written notes it."""

__version__ = "0.3.0"

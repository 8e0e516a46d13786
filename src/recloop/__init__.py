"""The public names of recloop, each loaded on first use."""

__version__ = "0.1.0"

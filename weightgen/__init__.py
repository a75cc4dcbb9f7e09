"""Generate, find, mix, fuse and judge neural network weights."""

__version__ = "0.1.0"

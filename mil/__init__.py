"""Whole-slide images in, the figures of a federated study out."""

__version__ = "0.1.0"

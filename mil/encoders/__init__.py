"""A name -> a frozen encoder: tile in, vector out."""

from mil.encoders import (  # noqa: F401  they enter themselves into the registry
    bioptimus,
    colour,
    efficientnet,
    histai,
    kaiko,
    mahmood,
    others,
    owkin,
    paige,
    resnet,
)
from mil.encoders.build import build
from mil.encoders.entry import ENCODERS, Encoder, Entry

__all__ = ["ENCODERS", "Encoder", "Entry", "build"]

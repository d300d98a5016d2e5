"""Features that someone else's tool made <-> files of ours, so that a site that has features need not extract again."""

from mil.convert.convert import convert_in, convert_out
from mil.convert.foreign import READERS, Foreign, Source
from mil.convert.writers import WRITERS

__all__ = ["READERS", "WRITERS", "Foreign", "Source", "convert_in", "convert_out"]

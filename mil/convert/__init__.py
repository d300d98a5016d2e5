"""Features that someone else's tool made <-> files of ours, so that a site that has features need not extract again."""

LAYOUTS = ("trident", "clam", "stamp", "marugoto", "histossl", "slide2vec", "atlaspatch")
"""Layouts that `convert.convert_in` reads."""
LAYOUTS_BACK = ("trident", "stamp")
"""Layouts that `convert.convert_out` writes."""

"""From whole-slide images to the figures of a multi-hospital study.

The names below are the public interface in Python; docs/api.md shows each of them. They are imported when they are first used, so
that `import mil` itself takes a few milliseconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mil.version import __version__ as __version__

if TYPE_CHECKING:
    from mil.api.classifier import MILClassifier as MILClassifier
    from mil.api.evaluation import Interval as Interval
    from mil.api.evaluation import auroc as auroc
    from mil.api.evaluation import draw_figure as draw_figure
    from mil.api.features import encode as encode
    from mil.api.features import load_encoder as load_encoder
    from mil.api.features import read_features as read_features
    from mil.api.features import write_features as write_features
    from mil.api.slides import read_microns as read_microns
    from mil.errors import MilError as MilError
    from mil.slides.slide import open_slide as open_slide
    from mil.specs.slides import TileSpec as TileSpec
    from mil.tiles.grid import tile_slide as tile_slide

_MODULES = {
    "open_slide": "mil.slides.slide",
    "read_microns": "mil.api.slides",
    "tile_slide": "mil.tiles.grid",
    "TileSpec": "mil.specs.slides",
    "load_encoder": "mil.api.features",
    "encode": "mil.api.features",
    "read_features": "mil.api.features",
    "write_features": "mil.api.features",
    "MILClassifier": "mil.api.classifier",
    "auroc": "mil.api.evaluation",
    "Interval": "mil.api.evaluation",
    "draw_figure": "mil.api.evaluation",
    "MilError": "mil.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mil' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*_MODULES, "__version__"]

"""Results -> figures, one module a figure, by name in `FIGURES`."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from mil.config import FiguresSpec
from mil.figures.registry import FIGURES
from mil.figures.save import save
from mil.results.results import Results

for module in iter_modules(__path__):  # importing a figure's module enters it into FIGURES
    import_module(f"{__name__}.{module.name}")


def draw_figure(name: str, results: Results, spec: FiguresSpec, site: str | None = None) -> list[Path]:
    """Draw the figure `name` (of one site, where it is drawn a site) into the results' `figures/`; returns its files."""
    drawn = FIGURES[name].draw(results, spec, site)
    return save(f"{name}.{site}" if FIGURES[name].per_site else name, drawn, results.folder / "figures", spec)

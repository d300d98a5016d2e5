"""Figures by name, and what drawing one gives: a picture, the values in it, and the words that go with it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from mil.config import FiguresSpec
from mil.endpoints import ENDPOINTS
from mil.errors import MilError, nearest
from mil.figures.style import use_style
from mil.paper import PROTOCOL
from mil.registry import Registry
from mil.results.results import Absent, Results

NEEDS = (
    "predictions",
    "metrics",
    "comparisons",
    "rounds",
    "census",
    "flow",
    "bags",
    "attention",
    "thumbnails",
    "features",
    "patients",
    "localisation",
    "baselines",
    "runs",
)

ANY = tuple(ENDPOINTS)
"""Every kind of endpoint."""


@dataclass(frozen=True)
class Drawn:
    """One figure, or the reason why it is left out (`left_out`, then there is no picture)."""

    caption: str = ""
    """What is seen, on how many patients, and how intervals were made."""
    n: str = ""
    """Patients (slides, tiles) in the figure, in words."""
    data: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The plotted values."""
    figure: Figure | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    """Further files, by their path in the folder `figures/{name}/`."""
    is_table: bool = False
    """The values are the figure: the report shows them as a table."""
    left_out: str = ""
    title: str = ""
    """Another title than the registry's."""


# (results, spec) -> Drawn, or (results, spec, site) -> Drawn for figures that are drawn a site
Draw = Callable[..., Drawn]


@dataclass(frozen=True)
class FigureEntry:
    """A figure that can be drawn: its title, the kinds of results it reads, and whether it reads pixels or features."""

    name: str
    title: str
    needs: tuple[str, ...]
    per_site: bool
    """Drawn once a site, from what lies behind that site's wall (attention, thumbnails, slides)."""
    function: Draw
    code: str
    """The module's file: when it changes, the figure is drawn anew."""
    endpoints: tuple[str, ...] = ("binary",)
    """Kinds of endpoint that it makes sense for."""
    chapter: str = ""
    """Chapter of the report (`mil/report/story.py`) that shows it."""
    number: str = ""
    """Number in the protocol's list (`mil/paper.py`); '' where it is not in it."""

    def draw(self, results: Results, spec: FiguresSpec, site: str | None = None) -> Drawn:
        """Draw it; a figure whose input this cohort lacks comes back left out, with the reason."""
        if self.per_site and site is None:
            raise MilError(f"figure '{self.name}' is drawn a site; give one of {', '.join(results.sites)}")
        if site is not None and site not in results.sites:
            raise MilError(f"unknown site '{site}'; {nearest(site, results.sites)}")
        with use_style():
            try:
                self._check_endpoint(results)
                return self.function(results, spec, site) if self.per_site else self.function(results, spec)
            except Absent as reason:
                return Drawn(left_out=str(reason))

    def _check_endpoint(self, results: Results) -> None:
        kind = results.config.endpoints[results.endpoint].kind
        if kind not in self.endpoints:
            drawn = " or ".join(self.endpoints)
            raise Absent(f"the endpoint {results.endpoint} is of kind {kind}; this figure is drawn for kind {drawn}")


FIGURES: Registry[FigureEntry] = Registry("figure")


def figure(
    title: str,
    needs: tuple[str, ...],
    per_site: bool = False,
    endpoints: tuple[str, ...] = ("binary",),
    *,
    chapter: str,
    number: str = "",
) -> Callable[[Draw], Draw]:
    """Decorator: enter a drawing function into `FIGURES` under its module's name."""
    unknown = (set(needs) - set(NEEDS)) | (set(endpoints) - set(ANY))
    if number and number not in PROTOCOL:
        raise ValueError(f"figure '{title}' has the number {number}, which the protocol's list does not know")
    if unknown:
        raise ValueError(f"figure '{title}' needs or draws unknown kinds {sorted(unknown)}")

    def enter(function: Draw) -> Draw:
        name = function.__module__.rsplit(".", 1)[-1]
        code = str(sys.modules[function.__module__].__file__)
        FIGURES.register(name)(FigureEntry(name, title, needs, per_site, function, code, endpoints, chapter, number))
        return function

    return enter

"""Who takes part, what stays behind each hospital's wall, and what moves: the federation as it was run."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from mil.config import FiguresSpec
from mil.figures.registry import Drawn, figure
from mil.figures.results import Absent, Results
from mil.figures.style import DOUBLE_MM, FAINT, INK, SOFT, new_figure, site_colour, strategy_name

HEIGHT_MM, BOX_MM, WALL_MM, SERVER_MM = 96.0, 36.0, 25.0, 150.0


@dataclass(frozen=True)
class _Site:
    name: str
    patients: int
    slides: int
    left: float
    width: float
    colour: str


@figure("The federation: what moves and what stays", needs=("bags", "census", "runs"))
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Training sites below the server, external sites beside them; arrows carry weights, counts and metrics."""
    bags = results.bags(results.endpoint)
    federated = [name for name, one in results.family().items() if one.strategy.name not in {"local", "pooled"}]
    name = federated[-1] if federated else results.main
    picture = new_figure(DOUBLE_MM, HEIGHT_MM, by_hand=True)
    axes = picture.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, DOUBLE_MM), ylim=(0, HEIGHT_MM))
    axes.axis("off")
    sites = _place(results, bags)
    size = _bytes(results, name)
    _server(axes, strategy_name(results.experiments[name].strategy.name), size)
    for site in sites:
        trains = results.config.slides.roles[site.name] == "train"
        _hospital(axes, site, trains)
        _arrows(axes, site, trains)
    axes.text(
        DOUBLE_MM / 2,
        3,
        "Slides, features and clinical data never leave a hospital.",
        ha="center",
        va="center",
        fontsize=7,
        color=SOFT,
    )
    data = pd.DataFrame(
        [
            {
                "site": site.name,
                "role": results.config.slides.roles[site.name],
                "patients": site.patients,
                "slides": site.slides,
            }
            for site in sites
        ]
    ).assign(bytes_a_model=size)
    rounds = results.models(name)["rounds"]
    return Drawn(
        figure=picture,
        data=data,
        n=f"{sum(site.patients for site in sites)} patients, {sum(site.slides for site in sites)} slides at {len(sites)} sites",
        caption=(
            "What moves and what stays. In every round the server sends the model's weights to the training sites, each "
            "trains on its own patients and sends weights, its number of patients and metrics back. External sites receive the final models and only "
            f"score them. {name} used {int(rounds.min())} to {int(rounds.max())} rounds a model"
            f"{f', {size / 1e3:,.0f} kB a message' if size else ''}. In this run the sites were simulated on one machine unless the log says otherwise."
        ),
    )


def _place(results: Results, bags: pd.DataFrame) -> list[_Site]:
    names = [site for site in results.sites if site in set(bags["site"])]
    if not names:
        raise Absent("no site has patients in the analysis")
    gap = 4.0
    width = min(BOX_MM + 8, (DOUBLE_MM - 8 - gap * (len(names) - 1)) / len(names))
    left = (DOUBLE_MM - len(names) * width - gap * (len(names) - 1)) / 2
    sites = []
    for number, site in enumerate(names):
        part = bags[bags["site"] == site]
        slides = int(part["slides"].astype(str).str.split(";").map(len).sum())
        sites.append(
            _Site(site, len(part), slides, left + number * (width + gap), width, site_colour(site, results.sites))
        )
    return sites


def _bytes(results: Results, name: str) -> int:
    """Bytes of one model's weights, from the run's file (all models in one)."""
    path = results.folder / "runs" / name / "weights.safetensors"
    if not path.is_file():
        return 0
    return round(path.stat().st_size / max(len(results.models(name)), 1))


def _server(axes: Axes, strategy: str, size: int) -> None:
    middle, top = DOUBLE_MM / 2, HEIGHT_MM - 4
    _box(axes, middle - SERVER_MM / 2, top - 20, SERVER_MM, 20, INK, "white", 1.1)
    axes.text(middle, top - 6, "Server", ha="center", va="center", fontsize=8.5, fontweight=700)
    axes.text(
        middle,
        top - 12.5,
        f"{strategy}: averages weights, holds no data",
        ha="center",
        va="center",
        fontsize=7,
        color=SOFT,
    )
    if size:
        axes.text(middle, top - 16.8, "ledger of every round", ha="center", va="center", fontsize=6.3, color=SOFT)


def _hospital(axes: Axes, site: _Site, trains: bool) -> None:
    _box(axes, site.left, 10, site.width, BOX_MM, site.colour, "white", 1.4)
    middle = site.left + site.width / 2
    axes.text(
        middle, 10 + BOX_MM - 5, site.name, ha="center", va="center", fontsize=8.5, fontweight=700, color=site.colour
    )
    axes.text(
        middle,
        10 + BOX_MM - 9.3,
        "trains" if trains else "external: only scores",
        ha="center",
        va="center",
        fontsize=6.3,
        color=SOFT,
    )
    _box(axes, site.left + 2, 12, site.width - 4, WALL_MM - 2, "none", "#f1f3f5", 0)
    for line, text in enumerate(
        (f"{site.slides} slides", f"{site.patients} patients' labels", "features", "clinical data")
    ):
        axes.text(middle, 12 + WALL_MM - 6 - 4.6 * line, text, ha="center", va="center", fontsize=6.6)


def _arrows(axes: Axes, site: _Site, trains: bool) -> None:
    """Down: the global model; up (training sites only): the update."""
    middle, top = site.left + site.width / 2, HEIGHT_MM - 24
    end = DOUBLE_MM / 2 + (middle - DOUBLE_MM / 2) * (SERVER_MM - 8) / DOUBLE_MM
    shift = 2.4 if trains else 0
    _arrow(axes, (end - shift, top), (middle - shift, 10 + BOX_MM), FAINT if trains else SOFT, dashed=not trains)
    if trains:
        _arrow(axes, (middle + shift, 10 + BOX_MM), (end + shift, top), site.colour)
    y = 10 + BOX_MM + 14
    x = middle + (end - middle) * (y - 10 - BOX_MM) / (top - 10 - BOX_MM)
    outwards = -1 if middle <= DOUBLE_MM / 2 else 1
    axes.text(
        x + outwards * (shift + 2.5), y, "weights ↓\nweights, counts,\nmetrics ↑" if trains else "final models ↓",
        ha="right" if outwards < 0 else "left", va="center", fontsize=6, linespacing=1.35, color=SOFT,
    )  # fmt: skip


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, dashed: bool = False) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "mutation_scale": 7, "shrinkA": 1, "shrinkB": 1}
    axes.annotate("", xy=end, xytext=start, arrowprops={**style, "linestyle": (0, (3, 2)) if dashed else "-"})


def _box(axes: Axes, x: float, y: float, wide: float, high: float, edge: str, face: str, line: float) -> None:
    style = "round,pad=0,rounding_size=1.6"
    axes.add_patch(FancyBboxPatch((x, y), wide, high, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=line))

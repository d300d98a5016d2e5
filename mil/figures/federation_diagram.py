"""Who takes part, what stays behind each hospital's wall, and what moves: the federation as it was run."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.layout import arrow, fitted, rounded_box
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import DOUBLE_MM, FAINT, INK, SOFT, centred, new_figure, readable, site_colour, strategy_name
from mil.results.results import Absent, Results
from mil.strategies.strategy import Strategy
from mil.tables import by_slide

HEIGHT_MM, BOX_MM, WALL_MM, SERVER_MM = 90.0, 36.0, 25.0, 66.0
LINE_MM = 2.9  # a line of text at 6 points
FEW_SITES = 6  # more than these are drawn as two groups, `COLUMNS` small boxes across
COLUMNS, CELL_MM, GROUP_GAP_MM = 6, 14.0, 6.0


@dataclass(frozen=True)
class _Site:
    name: str
    patients: int
    slides: int
    left: float
    width: float
    colour: str


@dataclass(frozen=True)
class _Group:
    sites: tuple[_Site, ...]
    trains: bool
    left: float
    width: float
    columns: int
    height: float


@figure(
    "The federation: what moves and what stays",
    needs=("bags", "census", "runs"),
    endpoints=ANY,
    chapter="cohort",
    number="F1a",
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Training sites below the server, external sites beside them; arrows carry weights, counts and metrics."""
    bags = results.bags(results.endpoint)
    name = results.federated
    if not results.experiments[name].strategy.of_rounds.federated:
        raise Absent("no experiment on the main one's encoder and model is federated")
    sites = _place(results, bags)
    groups = _groups(results, sites) if len(sites) > FEW_SITES else []
    height = HEIGHT_MM - BOX_MM + max(group.height for group in groups) if groups else HEIGHT_MM
    picture = new_figure(DOUBLE_MM, height, by_hand=True)
    axes = picture.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, DOUBLE_MM), ylim=(0, height))
    axes.axis("off")
    size = _bytes(results, name)
    _server(axes, height, strategy_name(results.experiments[name].strategy.name), size)
    for group in groups:
        _group(axes, group)
        _arrows(axes, height, group.left, group.width, 10 + group.height, INK, group.trains)
    for site in [] if groups else sites:
        trains = results.config.slides.roles[site.name] == "train"
        _hospital(axes, site, trains)
        _arrows(axes, height, site.left, site.width, 10 + BOX_MM, site.colour, trains)
    said = "Slides, features and clinical data never leave a hospital."
    centred(axes, DOUBLE_MM / 2, 3, said, fontsize=7, color=SOFT)
    rows = [(site.name, results.config.slides.roles[site.name], site.patients, site.slides, size) for site in sites]
    rounds = results.models(name)["rounds"]
    fewest, most = int(rounds.min()), int(rounds.max())
    external = "External sites receive the final models and only score them. " if results.external_sites else ""
    strategy = strategy_name(results.experiments[name].strategy.name)
    return Drawn(
        figure=picture,
        data=pd.DataFrame(rows, columns=["site", "role", "patients", "slides", "bytes_a_model"]),
        n=f"{sum(site.patients for site in sites)} patients, {sum(site.slides for site in sites)} slides at {len(sites)} sites",
        caption=(
            f"{_round(results.experiments[name].strategy.of_rounds)} {external}{strategy} used {fewest if fewest == most else f'{fewest} to {most}'} rounds a model"
            f"{f', {size / 1e3:,.0f} kB a message' if size else ''}. {_where(results, name)}"
        ),
    )


def _round(strategy: Strategy) -> str:
    """What moves in a round, in a sentence."""
    down = strategy.sent.removeprefix("gradients of the ")
    to = "one training site after another" if strategy.cyclic else "the training sites"
    return (
        f"In every round the server sends {down} to {to}, each trains on its own patients and sends {strategy.sent}, its number of "
        "patients and metrics back."
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
        slides = len(by_slide(part))
        sites.append(
            _Site(site, len(part), slides, left + number * (width + gap), width, site_colour(site, results.sites))
        )
    return sites


def _groups(results: Results, sites: list[_Site]) -> list[_Group]:
    """Training and external sites as two frames, side by side, each as wide as its share of the sites asks."""
    roles = results.config.slides.roles
    parts = [[site for site in sites if roles[site.name] == role] for role in ("train", "external")]
    parts = [part for part in parts if part]
    counts = [max(1, round(COLUMNS * len(part) / len(sites))) for part in parts]
    rows = max(-(-len(part) // count) for part, count in zip(parts, counts, strict=True))
    cell = (DOUBLE_MM - 8 - GROUP_GAP_MM * (len(parts) - 1)) / sum(counts)
    groups, left = [], 4.0
    for part, count in zip(parts, counts, strict=True):
        trains = roles[part[0].name] == "train"
        groups.append(_Group(tuple(part), trains, left, count * cell, count, 11 + rows * CELL_MM))
        left += count * cell + GROUP_GAP_MM
    return groups


def _group(axes: Axes, group: _Group) -> None:
    """A frame with a small box a hospital: its name, slides and patients."""
    rounded_box(axes, (group.left, 10), group.width, group.height, SOFT, "#f6f7f8", 0.8)
    head = "Training sites" if group.trains else "External sites: only score"
    axes.text(group.left + 3, 10 + group.height - 4.5, head, va="center", fontsize=7.5, fontweight=700)
    cell = group.width / group.columns
    for number, site in enumerate(group.sites):
        row, column = divmod(number, group.columns)
        left, top = group.left + column * cell, 10 + group.height - 8 - row * CELL_MM
        rounded_box(axes, (left + 1.5, top - CELL_MM + 1.5), cell - 3, CELL_MM - 2, site.colour, "white", 1.1)
        name, size = fitted(site.name, cell - 5, 7, bold=True)
        middle = left + cell / 2
        centred(axes, middle, top - 4, name, fontsize=size, fontweight=700, color=readable(site.colour))
        words, small = fitted(f"{site.slides} slides, {site.patients} patients", cell - 5, 6.3)
        centred(axes, middle, top - 8.3, words, fontsize=small, color=SOFT)


def _where(results: Results, name: str) -> str:
    """Whether hospitals took part or were simulated; what happened for real has a time and an actor in the ledger."""
    try:
        real = any("actor" in entry for entry in results.ledger(name))
    except Absent:
        return "The run kept no ledger."
    return (
        "The ledger was written by the hospitals." if real else "In this run the sites were simulated on one machine."
    )


def _bytes(results: Results, name: str) -> int:
    """Bytes of one model's weights, from the run's file (all models in one)."""
    path = results.folder / "runs" / name / "weights.safetensors"
    if not path.is_file():
        return 0
    return round(path.stat().st_size / max(len(results.models(name)), 1))


def _server(axes: Axes, height: float, strategy: str, size: int) -> None:
    middle, top = DOUBLE_MM / 2, height - 4
    rounded_box(axes, (middle - SERVER_MM / 2, top - 20), SERVER_MM, 20, INK, "white", 1.1)
    centred(axes, middle, top - 6, "Server", fontsize=8.5, fontweight=700)
    words, small = fitted(f"{strategy}: combines updates, holds no data", SERVER_MM - 4, 7)
    centred(axes, middle, top - 12.5, words, fontsize=small, color=SOFT)
    if size:
        centred(axes, middle, top - 16.8, "ledger of every round", fontsize=6.3, color=SOFT)


def _hospital(axes: Axes, site: _Site, trains: bool) -> None:
    rounded_box(axes, (site.left, 10), site.width, BOX_MM, site.colour, "white", 1.4)
    middle = site.left + site.width / 2
    name, size = fitted(site.name, site.width - 2, 8.5, bold=True)
    centred(axes, middle, 10 + BOX_MM - 5, name, fontsize=size, fontweight=700, color=readable(site.colour))
    role = "trains" if trains else "external: only scores"
    centred(axes, middle, 10 + BOX_MM - 9.3, role, fontsize=6.3, color=SOFT)
    rounded_box(axes, (site.left + 2, 12), site.width - 4, WALL_MM - 2, "none", "#f1f3f5", 0)
    kept = (f"{site.slides} slides", f"{site.patients} patients' labels", "features", "clinical data")
    for line, text in enumerate(kept):
        centred(axes, middle, 12 + WALL_MM - 6 - 4.6 * line, text, fontsize=6.6)


def _arrows(axes: Axes, height: float, left: float, width: float, box_top: float, colour: str, trains: bool) -> None:
    """Down: the global model; up (training sites only): the update."""
    middle, top = left + width / 2, height - 24
    end = DOUBLE_MM / 2 + (middle - DOUBLE_MM / 2) * (SERVER_MM - 8) / DOUBLE_MM
    shift = 2.4 if trains else 0
    arrow(axes, (end - shift, top), (middle - shift, box_top), FAINT if trains else SOFT, dashed=not trains)
    if trains:
        arrow(axes, (middle + shift, box_top), (end + shift, top), colour)
    words = "weights ↓\nweights, counts,\nmetrics ↑" if trains else "final models ↓"
    y = box_top + 6
    lowest = y - LINE_MM * (words.count("\n") + 1) / 2  # there the arrow is farthest from the middle
    x = middle + (end - middle) * (lowest - box_top) / (top - box_top)
    outwards = -1 if middle <= DOUBLE_MM / 2 else 1
    axes.text(
        x + outwards * (shift + 2), y, words,
        ha="right" if outwards < 0 else "left", va="center", fontsize=6, linespacing=1.35, color=SOFT,
    )  # fmt: skip

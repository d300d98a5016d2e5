"""Local, ensemble, pooled and federated on the same folds: a line a fold, a panel a training site and an external one."""

import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import Arm, arm, input_name, values_by_fold
from mil.figures.cohort_table import p_words
from mil.figures.layout import fitted, outer_panels, site_panels, text_mm, title_of_site, width_mm
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import FAINT, SOFT, chance_line, light_grid
from mil.results.results import Absent, Results
from mil.statistics.arms import OWN_SITE

FEW_ARMS = 5  # more than these are named from bottom to top
NAMES_MM = 24.0


@figure("Strategies fold by fold", needs=("predictions", "bags"), endpoints=ANY)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """AUROC of each fold's models; lines join one fold; below each arm the test of the last arm against it."""
    family, kind = results.family(), results.kind
    title = kind.primary.title
    tables = []
    for name in family:
        try:
            tables.append(values_by_fold(results, name).assign(experiment=name))
        except Absent:
            continue
    table = pd.concat([part for part in tables if len(part)], ignore_index=True) if any(map(len, tables)) else None
    if table is None:
        raise Absent(
            "no fold has patients of both classes" if kind.name == "binary" else f"{title} is not defined in any fold"
        )
    table = table[
        (table["split"] != "transfer") & table["site"].isin(results.sites) & (table["trained_on"] != OWN_SITE)
    ]
    sites = [site for site in results.sites if site in set(table["site"])]
    arms = {site: _arms(results, table[table["site"] == site]) for site in sites}
    most = max(len(one) for one in arms.values())
    longest = max(text_mm(_short(one, site), 6) for site, there in arms.items() for one in there)
    picture, panels = site_panels(sites, below_mm=max(min(longest, NAMES_MM) - 4, 0) if most > FEW_ARMS else 0)
    tests = []
    for axes, site in zip(panels, sites, strict=True):
        mine = table[table["site"] == site]
        tests += _panel(axes, results, site, mine, arms[site])
    low = min((kind.primary.chance or 0.0) - 0.15, float(table[kind.primary.name].min())) - 0.08 * (
        1 + (most > FEW_ARMS)
    )
    for axes in panels:
        axes.set_ylim(low, 1.03)
    for axes in outer_panels(panels):
        axes.set_ylabel(f"{title} of a fold")
    tested = pd.DataFrame(tests)
    _write_p(panels, sites, arms, tested)
    main = results.experiments[results.main]
    data = pd.concat([table.assign(kind="fold"), tested.assign(kind="test")], ignore_index=True) if tests else table
    return Drawn(
        figure=picture,
        data=data,
        n=f"{table.groupby(['repeat', 'fold']).ngroups} folds",
        caption=(
            f"{title} of {input_name(main)} for {main.endpoint}, fold by fold (at external sites: of each fold's models on all "
            "patients); lines join the same fold, bars are means. p: the last arm against each other at training sites, after Holm's correction, "
            "as in the table of comparisons."
        ),
    )


def _short(one: Arm, site: str) -> str:
    """The arm's name below a panel of `site`."""
    return "Local" if one.trained_on == site and "," in one.name else one.name.replace(" of locals", "")


def _arms(results: Results, table: pd.DataFrame) -> list[Arm]:
    pairs = table[["experiment", "trained_on"]].drop_duplicates().itertuples(index=False)
    return sorted((arm(results, name, on) for name, on in pairs), key=lambda one: one.order)


def _panel(axes: Axes, results: Results, site: str, table: pd.DataFrame, arms: list[Arm]) -> list[dict[str, object]]:
    wide = table.pivot_table(
        index=["repeat", "fold"], columns=["experiment", "trained_on"], values=results.kind.primary.name
    )
    columns = [(one.experiment, one.trained_on) for one in arms]
    for _, row in wide.iterrows():
        axes.plot(range(len(arms)), row[columns], color=FAINT, linewidth=0.5, alpha=0.7, zorder=1)
    for place, (one, column) in enumerate(zip(arms, columns, strict=True)):
        values = wide[column].dropna()
        axes.plot([place] * len(values), values, "o", color=one.colour, markersize=3, alpha=0.75, markeredgewidth=0)
        axes.hlines(values.mean(), place - 0.28, place + 0.28, color=one.colour, linewidth=2)
    chance_line(axes, at=results.kind.primary.chance)
    light_grid(axes)
    role = results.config.slides.roles[site]
    title_of_site(axes, site, "held out" if role == "train" else "external")
    names = [_short(one, site) for one in arms]
    if len(arms) > FEW_ARMS:
        axes.set_xticks(range(len(arms)), [fitted(name, NAMES_MM, 6, least=6)[0] for name in names], rotation=90)
    else:
        step = width_mm(axes) / len(arms)
        lines = [[fitted(part, step, 6, least=5.0) for part in name.split(", ")] for name in names]
        size = min(size for line in lines for _, size in line)
        axes.set_xticks(range(len(arms)), ["\n".join(part for part, _ in line) for line in lines])
        axes.tick_params(axis="x", labelsize=size)
    axes.set_xlim(-0.5, len(arms) - 0.5)
    if role != "train":
        return []
    return _tests(results, site, arms)


def _tests(results: Results, site: str, arms: list[Arm]) -> list[dict[str, object]]:
    """The rows of the table of comparisons of the last of `arms` and each other."""
    try:
        table = results.comparisons()
    except Absent:
        return []
    table, last = table[(table["site"] == site) & table["p_adjusted"].notna()], arms[-1]
    known = {}
    for row in table.itertuples():
        ends = (row.first, row.first_trained_on), (row.second, row.second_trained_on)
        known[frozenset(ends)] = row
    rows = []
    for one in arms[:-1]:
        row = known.get(frozenset([(one.experiment, one.trained_on), (last.experiment, last.trained_on)]))
        if row is not None:
            tested = {"p": row.p, "p_adjusted": row.p_adjusted, "method": row.method}
            rows.append({"site": site, "experiment": one.experiment, "trained_on": one.trained_on, **tested})
    return rows


def _write_p(panels: list[Axes], sites: list[str], arms: dict[str, list[Arm]], tested: pd.DataFrame) -> None:
    for row in tested.itertuples():
        axes = panels[sites.index(str(row.site))]
        place = [(one.experiment, one.trained_on) for one in arms[str(row.site)]].index(
            (row.experiment, row.trained_on)
        )
        low = axes.get_ylim()[0]
        axes.text(
            place,
            low + 0.015,
            p_words(float(row.p_adjusted)),  # type: ignore[arg-type]
            ha="center",
            fontsize=5.4,
            color=SOFT,
            rotation=90 if len(arms[str(row.site)]) > FEW_ARMS else 0,
        )

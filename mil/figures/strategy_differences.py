"""Every strategy less the pooled model, less other sites' local models, less each site's own, and its rounds: a row per strategy."""

import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.arms import Arm, arm, input_name
from mil.figures.how_made import how_tested
from mil.figures.layout import signed
from mil.figures.learning_curves import chosen_rounds
from mil.figures.registry import ANY, Drawn, figure
from mil.figures.style import DOUBLE_MM, FAINT, HAIR, PAPER, letters, light_grid, new_figure, row_axis
from mil.metrics.strategies import ELSEWHERE, POOLED
from mil.results.results import Absent, Results
from mil.statistics.arms import GROUPS, OWN_SITE
from mil.tables import stacked

ROW_MM, HEAD_MM = 6.0, 22.0
STEPS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Possible distances of the ticks of an axis of differences; a difference of correlations is at most 2."""
EQUAL = 0.02
"""Within this of the pooled model a strategy is called as good."""
TITLES = {POOLED: "Minus pooled", ELSEWHERE: "Minus locals\nfrom elsewhere", OWN_SITE: "Minus own site"}
LESS = {
    POOLED: "less that of the pooled model",
    ELSEWHERE: "less the mean of the local models of other sites at each site",
    OWN_SITE: "less each training site's own model on its held-out patients",
}


@figure(
    "Strategies against pooled and local",
    needs=("comparisons", "rounds"),
    endpoints=ANY,
    chapter="performance",
    number="ED2",
)
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Differences of AUROC with their intervals; a panel for each thing a strategy is set against and each kind of sites."""
    table = results.strategies()
    shown = table[(table["against"] != "") & ~table["site"].isin(_single(table))]
    if shown.empty:
        raise Absent("no strategy stands beside a pooled or a local model of the same input")
    pairs = shown[["experiment", "trained_on"]].drop_duplicates().itertuples(index=False)
    arms = sorted((arm(results, name, on) for name, on in pairs), key=lambda row_arm: row_arm.order)
    columns = [
        (against, site)
        for against in TITLES
        for site in dict.fromkeys(shown.sort_values("split", ascending=False)["site"])
        if ((shown["against"] == against) & (shown["site"] == site)).any()
    ]
    title, confidence = results.kind.primary.title, results.config.metrics.confidence
    level = round(1 - confidence, 9)
    picture = new_figure(DOUBLE_MM, HEAD_MM + ROW_MM * len(arms))
    rounds = stacked([chosen_rounds(results, name).assign(experiment=name) for name in results.family()])
    panels = picture.subplots(1, len(columns) + 1, sharey=True, squeeze=False)[0]
    _draw_rounds(panels[-1], rounds, arms)
    for axes, (against, site) in zip(panels, columns, strict=False):
        part = shown[(shown["against"] == against) & (shown["site"] == site)]
        _panel(axes, part, arms, f"{TITLES[against]}\n{site}", title, EQUAL if against == POOLED else 0.0, level)
    panels[0].set_yticks(range(len(arms)), [_label(results, row_arm) for row_arm in arms])
    panels[0].set_ylim(len(arms) - 0.4, -0.7)
    if len(panels) > 1:
        letters(panels)
    main = results.experiments[results.main]
    corrected = (
        f"{confidence:.0%} intervals and p are after Holm's correction over all strategies that are set against the same. "
        if shown["p"].notna().any()
        else ""
    )
    return Drawn(
        figure=picture,
        data=pd.concat([table.assign(kind="difference"), rounds.assign(kind="rounds")], ignore_index=True),
        n=", ".join(
            f"{site} {int(shown.loc[shown['site'] == site, 'patients'].max())}" for site in shown["site"].unique()
        ),
        caption=(
            f"{title} of each strategy on {input_name(main)} for {main.endpoint} {', '.join(LESS[against] for against in dict(columns))}; "
            f"within sites where there are several. {corrected}{how_tested(shown)} "
            f"{f'The grey band is {EQUAL} to either side of the pooled model. ' if POOLED in dict(columns) else ''}Filled: p < {level:g}. Single sites stand "
            "in the values beside the figure. Rounds: the number that the inner folds chose for each fold's model; for one-site and pooled models a round "
            "is one pass of local work."
        ),
    )


def _label(results: Results, arm: Arm) -> str:
    """The arm, with its local epochs and most rounds where the family differs in them."""
    settings = {(spec.training.rounds, spec.training.local_epochs) for spec in results.family().values()}
    if len(settings) < 2:
        return arm.name
    training = results.experiments[arm.experiment].training
    return f"{arm.name}\n{training.rounds} × {training.local_epochs}"


def _single(table: pd.DataFrame) -> list[str]:
    """Sites that a group of sites stands for."""
    grouped = set(table.loc[table["site"].isin(GROUPS), "split"])
    return [site for site, part in table.groupby("site") if site not in GROUPS and set(part["split"]) <= grouped]


def _panel(axes: Axes, table: pd.DataFrame, arms: list[Arm], head: str, title: str, equal: float, level: float) -> None:
    """`equal`: half the width of the grey band; `level`: p below which a mark is filled."""
    light_grid(axes, "x")
    if equal:
        axes.axvspan(-equal, equal, color=HAIR, linewidth=0, zorder=0)
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=1)
    by_arm = table.set_index(["experiment", "trained_on"])
    for height, row_arm in enumerate(arms):
        if (row_arm.experiment, row_arm.trained_on) not in by_arm.index:
            continue
        row = by_arm.loc[(row_arm.experiment, row_arm.trained_on)]
        axes.plot([row["low_adjusted"], row["high_adjusted"]], [height, height], color=row_arm.colour, linewidth=1.4)
        face = row_arm.colour if row["p_adjusted"] < level else "white"
        axes.plot(row["difference"], height, "o", color=row_arm.colour, markersize=4.2, markerfacecolor=face)
        axes.text(
            row["difference"], height - 0.2, signed(row["difference"]), ha="center", va="bottom", fontsize=6,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    reach = max(0.1, float(table[["low_adjusted", "high_adjusted", "difference"]].abs().max().max())) * 1.15
    axes.set(xlim=(-reach, reach), xlabel=f"Δ{title}")
    step = max(step for step in STEPS if step <= 0.9 * reach)  # three numbers fit the narrowest panel
    axes.set_xticks([-step, 0, step], [f"−{step:g}", "0", f"{step:g}"])
    axes.set_title(head, fontsize=7)
    row_axis(axes)


def _draw_rounds(axes: Axes, rounds: pd.DataFrame, arms: list[Arm]) -> None:
    light_grid(axes, "x")
    for height, row_arm in enumerate(arms):
        mine = rounds[(rounds["experiment"] == row_arm.experiment) & (rounds["trained_on"] == row_arm.trained_on)][
            "rounds"
        ]
        counts = mine.value_counts()
        axes.scatter(
            counts.index,
            [height] * len(counts),
            s=8 * counts.to_numpy(),
            color=row_arm.colour,
            alpha=0.75,
            linewidths=0,
        )
    axes.set(xlabel="Rounds chosen")
    axes.set_xlim(0, float(rounds["rounds"].max() if len(rounds) else 1) * 1.08 + 0.5)
    row_axis(axes)
    axes.set_title("Rounds")

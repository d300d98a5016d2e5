"""Rules of evaluation run again when the code behind their numbers changes."""

from pathlib import Path

from mil.workflow.code import PACKAGE, code_of
from mil.workflow.figures import figure_inputs


def below(paths: list[str]) -> set[str]:
    return {Path(path).relative_to(PACKAGE).as_posix() for path in paths}


def test_metrics_depend_on_the_statistics_they_use():
    score, compare = below(code_of("metrics/score.py")), below(code_of("metrics/comparison.py"))
    assert {"metrics/score.py", "statistics/delong.py", "endpoints/binary.py"} <= score
    assert {"metrics/comparison.py", "statistics/multiplicity.py"} <= compare
    assert not any(name.startswith("figures/") for name in score | compare)


def test_a_figure_depends_on_what_it_shares_with_others_and_not_on_other_figures():
    code = below(code_of("figures/roc_by_site.py"))
    assert {"figures/roc_by_site.py", "figures/style.py", "figures/arms.py", "statistics/ranking.py"} <= code
    assert "figures/heatmaps.py" not in code
    assert all(
        Path(one.code) in {Path(path) for path in code_of(f"figures/{name}.py")}
        for name, one in figure_inputs().items()
    )

"""`mil clinical`: a cohort without slides, from its patient table."""

from pathlib import Path
from typing import Annotated

import typer

from mil.commands.options import LogOption, reporter_of


def clinical(
    configs: Annotated[list[Path], typer.Argument(help="Config files of the cohort, later ones over earlier ones.")],
    log: LogOption = None,
) -> None:
    """Clinical columns alone, without a slide: local, pooled and federated logistic regression, scored as slide models are."""
    from mil.baselines.clinical_cohort import clinical_cohort, read_patients
    from mil.config import load
    from mil.metrics.score import primary

    reporter = reporter_of(log)
    config = load(*configs)
    cohort = read_patients(config)
    for endpoint in config.endpoints:
        found = clinical_cohort(config, endpoint, cohort, reporter)
        folder = Path(config.results) / config.cohort / "clinical" / endpoint
        found.save(folder)
        for row in primary(found.metrics).itertuples():
            reporter.note(
                f"{row.experiment} trained on {row.trained_on}, {row.site}: AUROC {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
            )
        reporter.say(f"clinical {endpoint}: {len(found.bags)} patients; tables below {folder}")

"""`mil clinical`: a cohort without slides, from its patient table."""

from mil.commands.options import ConfigsArgument, LogOption, reporter_of


def clinical(
    configs: ConfigsArgument,
    log: LogOption = None,
) -> None:
    """Train and score linear models of clinical columns alone, without slides: local, pooled and federated (FedAvg)."""
    from mil.baselines.clinical_cohort import clinical_cohort, read_patients
    from mil.config import load
    from mil.metrics.score import primary

    reporter = reporter_of(log)
    config = load(*configs)
    cohort = read_patients(config)
    for endpoint in config.endpoints:
        found = clinical_cohort(config, endpoint, cohort, reporter)
        folder = config.results_folder / "clinical" / endpoint
        found.save(folder)
        for row in primary(found.metrics).itertuples():
            reporter.note(
                f"{row.experiment} trained on {row.trained_on}, {row.site}: AUROC {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
            )
        reporter.say(f"clinical {endpoint}: {len(found.bags)} patients; tables below {folder}")

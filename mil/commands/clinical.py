"""`mil clinical`: a cohort without slides, from its patient table."""

from mil.commands.options import ConfigsArgument, LogOption, read_config, reporter_of, scored_line


def clinical(
    configs: ConfigsArgument,
    log: LogOption = None,
) -> None:
    """Train and score linear models of clinical columns alone, without slides: local, pooled and federated (FedAvg)."""
    from mil.baselines.clinical_cohort import clinical_cohort, read_patients
    from mil.endpoints import build_endpoint
    from mil.metrics.score import primary

    reporter = reporter_of(log)
    config = read_config(configs)
    cohort = read_patients(config)
    missing = [name for name, spec in config.endpoints.items() if spec.column not in cohort.patients.columns]
    for endpoint in config.endpoints:
        # The defaults name an endpoint `response`, which a cohort with endpoints of other names may not have.
        if endpoint in missing and endpoint not in config.used_endpoints and len(missing) < len(config.endpoints):
            column = config.endpoints[endpoint].column
            reporter.say(
                f"clinical {endpoint}: left out: no column '{column}' in the patient table, and no experiment of `run` uses it"
            )
            continue
        baseline = clinical_cohort(config, endpoint, cohort, reporter)
        folder = config.results_folder / "clinical" / endpoint
        baseline.save(folder)
        for row in primary(baseline.metrics).itertuples():
            reporter.note(scored_line(row, build_endpoint(config.endpoints[endpoint]).primary.title))
        reporter.say(f"clinical {endpoint}: {len(baseline.bags)} patients; tables below {folder}")

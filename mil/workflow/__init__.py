"""What the Snakefile needs to know before a job starts. Imports no torch, matplotlib or lifelines: every cluster job reads the Snakefile."""

import json
from pathlib import Path

from mil.config import Config


def prepare(config: Config) -> dict[str, list[int]]:
    """Check the cohort, write what the rules depend on, and return the numbers of each site's shards."""
    from mil.readiness import checked_cohort
    from mil.workflow.again import order_again
    from mil.workflow.inputs import write_inputs
    from mil.workflow.plan import check_disk
    from mil.workflow.shards import write_shards

    cohort = checked_cohort(config)
    check_disk(config, cohort)
    results = config.results_folder
    write_inputs(config, cohort, results)
    shards = write_shards(config, cohort, results)
    order_again(results, shards, config.used_encoders, config.run)
    return shards


def read_shards(config: Config) -> dict[str, list[int]]:
    """What `prepare` returned: a job on a cluster reads neither the sheet nor the slides."""
    return json.loads((config.results_folder / "inputs/shards.json").read_text(encoding="utf-8"))


def settle(results: str) -> None:
    """Forget what dry runs replaced: a run starts."""
    from mil.workflow.inputs import settle as settle_inputs

    settle_inputs(Path(results))

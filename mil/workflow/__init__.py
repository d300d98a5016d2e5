"""What the Snakefile needs to know before a job starts. Imports no torch, matplotlib or lifelines: every cluster job reads the Snakefile."""

import json
from pathlib import Path

from mil.config import Config


def prepare(config: Config) -> dict[str, list[int]]:
    """Check the cohort, write what the rules depend on, and return the numbers of each site's shards."""
    from mil.readiness import check_readiness
    from mil.slides.sheet import read_cohort
    from mil.workflow.again import order_again
    from mil.workflow.inputs import write_inputs
    from mil.workflow.plan import check_disk
    from mil.workflow.shards import write_shards

    experiments = config.selected()
    cohort = read_cohort(config.slides, sorted({config.endpoints[one.endpoint].column for one in experiments.values()}))
    check_readiness(config, cohort)
    check_disk(config, cohort)
    results = config.results_folder
    write_inputs(config, cohort, results)
    shards = write_shards(config, cohort, results)
    order_again(results, shards, sorted({one.encoder for one in experiments.values()}), experiments)
    return shards


def read_shards(config: Config) -> dict[str, list[int]]:
    """What `prepare` returned: a job on a cluster reads neither the sheet nor the slides."""
    return json.loads((config.results_folder / "inputs/shards.json").read_text(encoding="utf-8"))


def settle(results: str) -> None:
    """Forget what dry runs replaced: a run starts."""
    from mil.workflow.inputs import settle as settle_inputs

    settle_inputs(Path(results))

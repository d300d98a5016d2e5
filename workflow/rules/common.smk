"""The validated config, the cohort's sheet, and the names that rules share."""

import os
import re
import shlex
import sys
import time

from snakemake.exceptions import WorkflowError

from mil.config import Config
from mil.config import defaults
from mil.config import merge
from mil.config import parse as parse_spec
from mil.config import read_yaml
from mil.errors import MilError
from mil.workflow import prepare, read_shards, settle
from mil.workflow.failures import failures
from mil.workflow.specs import encoder_json, slides_of

STARTED = time.time()
CLUSTER_CORES = 8  # of one extraction, where jobs are submitted

# `mil` is the one installed beside this Python, whether or not its environment is activated.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")

try:
    for path in workflow.configfiles:  # Snakemake's reader takes a key twice, and 010 for 8
        if str(path).endswith((".yaml", ".yml")):
            read_yaml(path)
    stanzas = merge(defaults(), read_yaml(workflow.source_path("../../configs/experiments.yaml")))
    settings_of_cohort = parse_spec(Config, merge(stanzas, config), "config")
    if not settings_of_cohort.cohort:
        raise MilError("no cohort is named; run snakemake --configfile configs/cohorts/<name>.yaml")
    if not settings_of_cohort.run:
        raise MilError("no experiment is named; list some under run: (configs/experiments.yaml has them)")
    # Snakemake puts the prefix of a module before rules' files, and not into what rules are told.
    PATH = f"{settings_of_cohort.results}/{settings_of_cohort.cohort}"
    RESULTS = workflow.modifier.path_modifier.replace_prefix(PATH)
    settings_of_cohort = settings_of_cohort.model_copy(update={"results": os.path.dirname(RESULTS)})
    SHARDS = prepare(settings_of_cohort) if workflow.is_main_process else read_shards(settings_of_cohort)
    if workflow.is_main_process and not workflow.modifier.is_main_snakefile():
        settle(RESULTS)  # `onstart` of a module is not called
except MilError as error:
    raise WorkflowError(str(error)) from None

EXPERIMENTS = settings_of_cohort.selected()
ENCODERS = sorted({experiment.encoder for experiment in EXPERIMENTS.values()})
ENDPOINTS = sorted({experiment.endpoint for experiment in EXPERIMENTS.values()})
SITES = sorted(SHARDS)
FEATURE_SITES = sorted(settings_of_cohort.slides.features)  # with features alone
TRAIN_SITES = [site for site in SITES if settings_of_cohort.slides.roles[site] == "train"]


# `<results>` in the rules' files and logs; in params, where Snakemake does not put it in, RESULTS.
pathvars:
    results=PATH,
    logs=f"{PATH}/logs",


wildcard_constraints:
    site=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    encoder=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    endpoint=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    experiment="|".join(map(re.escape, EXPERIMENTS)),  # not X.localisation of `metrics/X.localisation.csv`
    shard=r"\d+",


def covariates_of(endpoint):
    """Columns of the patient table that the endpoint's experiments read besides the slides, in the order of their first use."""
    experiments = [experiment for experiment in EXPERIMENTS.values() if experiment.endpoint == endpoint]
    return list(dict.fromkeys(name for experiment in experiments for name in experiment.covariates))


def encoders_of(endpoint):
    """The encoders whose features the endpoint's experiments read."""
    return sorted({experiment.encoder for experiment in EXPERIMENTS.values() if experiment.endpoint == endpoint})


def any_of(names):
    """A wildcard's pattern that takes these names; no name at all where there are none."""
    return "|".join(map(re.escape, sorted(names))) or "(?!)"


def threads_per_shard(wildcards):
    """Cores of one extraction: a machine's are shared among its jobs; a cluster's job uses those that it was given."""
    cores = workflow.resource_settings.cores
    if not workflow.is_main_process:  # the node may have more cores than the job was given
        return int(os.environ.get("SLURM_CPUS_PER_TASK", cores))
    if cores is None:  # jobs are submitted; `set-threads` of the profile overrides it
        return CLUSTER_CORES
    jobs = sum(len(SHARDS[site]) for site in SITES if site not in FEATURE_SITES) * len(ENCODERS)
    return max(1, cores // max(1, jobs))


def growing(amount):
    """A resource that grows with every attempt, so that a job that ran out of memory or time is tried again with more."""
    return lambda wildcards, attempt: amount * attempt


def ordered_again(stage, wildcards):
    """One more input of a job whose files were deleted or moved aside, so that they are made again."""
    name = f"sites/{wildcards.site}/shards/again/{stage}.{wildcards.get('shard', 0)}"
    return [f"<results>/{name}"] if os.path.exists(f"{RESULTS}/{name}") else []


def predicted_again(wildcards):
    """The same for attention."""
    name = f"inputs/again/predict.{wildcards.experiment}"
    return [f"<results>/{name}"] if os.path.exists(f"{RESULTS}/{name}") else []


def tile_manifests(site):
    if site in FEATURE_SITES:
        return []
    return expand("<results>/sites/{site}/tiles/shard{shard}.csv", site=site, shard=SHARDS[site])


def feature_manifests(site, encoder):
    return expand(
        "<results>/sites/{site}/features/{encoder}/shard{shard}.csv",
        site=site,
        encoder=encoder,
        shard=SHARDS[site],
    )


def foreign_folder(site, encoder):
    return settings_of_cohort.slides.features[site].folder.replace("{encoder}", encoder)


def made_by(encoder):
    """Settings of an encoder that decide what its features are; how work is cut up, and where weights lie, may change."""
    return settings_of_cohort.encoders[encoder].model_dump_json(exclude={"precision", "batch_size"})


def foreign_features(site, encoder):
    """What `mil convert` is told of a site's features: layout, folder and what the files do not say, quoted for the shell."""
    source = settings_of_cohort.slides.features[site]
    settings = {
        "--encoder": source.encoder or settings_of_cohort.encoders[encoder].name,
        "--expect": f"{encoder}={made_by(encoder)}",
        "--mpp": source.mpp,
        "--tile-mpp": source.tile_mpp,
        "--weights-sha256": source.weights_sha256,
    }
    options = [str(part) for pair in settings.items() if pair[1] is not None for part in pair]
    return shlex.join([source.layout, foreign_folder(site, encoder), *options])

"""slides -> tiles -> features -> bags -> runs (federated) -> predictions -> metrics -> figures -> report."""

from snakemake.utils import min_version

min_version("9.20")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/slides.smk"
include: "workflow/rules/tiles.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/bags.smk"
include: "workflow/rules/runs.smk"
include: "workflow/rules/predictions.smk"
include: "workflow/rules/metrics.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"


onstart:
    settle(RESULTS)


onsuccess:
    if os.path.exists(f"{RESULTS}/report/index.html"):
        print(f"The report: {os.path.abspath(RESULTS)}/report/index.html", file=sys.stderr)


# Below the shell commands, in which they are easily overlooked.
onerror:
    for line in failures(f"{RESULTS}/logs", STARTED, log):
        print(line, file=sys.stderr)


localrules:
    all,
    slides,
    census,


rule all:
    default_target: True
    input:
        "<results>/report/index.html",
        "<results>/ro-crate-metadata.json",
        expand("<results>/sites/{site}/contact_sheet.jpg", site=[site for site in SITES if site not in FEATURE_SITES]),

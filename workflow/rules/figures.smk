"""tables, slides -> figures: vector, raster, plotted values and caption; drawn anew when their module changes."""

from mil.workflow.figures import figure_inputs as figures_of_source

FIGURES = figures_of_source()
FIGURE_SETTINGS = expand("<results>/inputs/{name}.json", name=["study", "metrics", "figures", "truth"])
OF_COHORT = [name for name in FIGURES if not FIGURES[name].per_site]
OF_SITE = [name for name in FIGURES if FIGURES[name].per_site]
NUMBERED = {
    number: [name for name in FIGURES if number in FIGURES[name].number.split(", ")]
    for number in {part for listed in FIGURES.values() for part in listed.number.split(", ") if part}
}


def figure_inputs(names, sites):
    """The files that figures need, from the kinds of artefact that their entries in the registry name."""
    files = {
        "predictions": expand("<results>/predictions/{experiment}.csv", experiment=EXPERIMENTS),
        "metrics": expand(
            "<results>/metrics/{experiment}{of}.csv", experiment=EXPERIMENTS, of=["", ".curves", ".folds"]
        ),
        "comparisons": [
            *expand("<results>/metrics/{name}.csv", name=["comparisons", "strategies", "cohort", "reviews"]),
            *CLINICAL,
        ],
        "localisation": LOCALISATION,
        "baselines": expand("<results>/baselines/{endpoint}/metrics.csv", endpoint=ENDPOINTS),
        "rounds": expand("<results>/runs/{experiment}/rounds.csv", experiment=EXPERIMENTS),
        "runs": expand("<results>/runs/{experiment}/ledger.jsonl", experiment=EXPERIMENTS),
        "census": expand("<results>/census/{site}.csv", site=SITES),
        "bags": expand("<results>/bags/{endpoint}.csv", endpoint=ENDPOINTS),
        "flow": expand("<results>/bags/{endpoint}.flow.csv", endpoint=ENDPOINTS),
        "patients": ["<results>/inputs/patients.json"],
        "thumbnails": [manifest for site in sites for manifest in tile_manifests(site)],
        "features": [
            manifest for site in sites for encoder in ENCODERS for manifest in feature_manifests(site, encoder)
        ],
        "attention": expand("<results>/sites/{site}/attention/{experiment}", site=sites, experiment=EXPERIMENTS),
    }
    kinds = dict.fromkeys(kind for name in names for kind in FIGURES[name].needs)
    return [file for kind in kinds for file in files[kind]]


def figure_files():
    """The caption file of every figure of the cohort; its other files lie beside it."""
    return expand("<results>/figures/{figure}.json", figure=OF_COHORT) + expand(
        "<results>/figures/{figure}.{site}.json", figure=OF_SITE, site=SITES
    )


# One process draws many figures: starting one takes longer than drawing. `mil plot NAME` draws one alone.
rule figure:
    input:
        settings=FIGURE_SETTINGS,
        tables=figure_inputs(OF_COHORT, []),
        code=code_of(*(f"figures/{name}.py" for name in OF_COHORT)),
    output:
        expand("<results>/figures/{figure}.json", figure=OF_COHORT),
    log:
        "<logs>/figure/cohort.log",
    benchmark:
        "<results>/benchmarks/figure/cohort.tsv"
    priority: 4  # longer than those of a site
    resources:
        mem_mb=growing(8000),
        runtime=growing(120),  # minutes
    params:
        spec=lambda wildcards: settings_of_cohort.figures.to_json(),
        results=lambda wildcards: RESULTS,
    shell:
        "mil plot all --results {params.results:q} --spec {params.spec:q} --log {log:q}"


rule figure_of_site:
    input:
        settings=FIGURE_SETTINGS,
        tables=lambda wildcards: figure_inputs(OF_SITE, [wildcards.site]),
        code=code_of(*(f"figures/{name}.py" for name in OF_SITE)),
    output:
        expand("<results>/figures/{figure}.{{site}}.json", figure=OF_SITE),
    log:
        "<logs>/figure/{site}.log",
    benchmark:
        "<results>/benchmarks/figure/{site}.tsv"
    priority: 3
    resources:
        mem_mb=growing(8000),
        runtime=growing(120),  # minutes
    params:
        spec=lambda wildcards: settings_of_cohort.figures.to_json(),
        results=lambda wildcards: RESULTS,
    shell:
        "mil plot all --results {params.results:q} --site {wildcards.site:q} --spec {params.spec:q} --log {log:q}"


# `snakemake NAME` draws one figure alone, `snakemake F2a` those that have this number in the protocol's list, from no more than they
# need; figures that are drawn a site in a job a site.
for asked, names in sorted(({name: [name] for name in FIGURES} | NUMBERED).items()):

    rule:
        name:
            asked
        input:
            settings=FIGURE_SETTINGS,
            tables=figure_inputs([figure for figure in names if figure in OF_COHORT], []),
            code=code_of(*(f"figures/{figure}.py" for figure in names)),
            sites=expand(
                "<results>/figures/alone/{figure}.{site}",
                figure=[figure for figure in names if figure in OF_SITE],
                site=SITES,
            ),
        log:
            f"<logs>/figure/{asked}.log",
        resources:
            mem_mb=growing(8000),
            runtime=growing(120),
        params:
            spec=lambda wildcards: settings_of_cohort.figures.to_json(),
            results=lambda wildcards: RESULTS,
            figures=[figure for figure in names if figure in OF_COHORT],
            number=sum(figure in OF_COHORT for figure in names),
        shell:
            "test {params.number:q} = 0"
            " || mil plot {params.figures:q} --results {params.results:q} --spec {params.spec:q} --log {log:q}"


rule one_figure_of_site:
    input:
        settings=FIGURE_SETTINGS,
        tables=lambda wildcards: figure_inputs([wildcards.figure], [wildcards.site]),
        code=lambda wildcards: code_of(f"figures/{wildcards.figure}.py"),
    output:
        touch("<results>/figures/alone/{figure}.{site}"),
    log:
        "<logs>/figure/{figure}.{site}.log",
    wildcard_constraints:
        figure="|".join(OF_SITE),
    resources:
        mem_mb=growing(8000),
        runtime=growing(120),  # minutes
    params:
        spec=lambda wildcards: settings_of_cohort.figures.to_json(),
        results=lambda wildcards: RESULTS,
    shell:
        "mil plot {wildcards.figure:q} --results {params.results:q} --site {wildcards.site:q} --spec {params.spec:q} --log {log:q}"


rule figures:
    input:
        figure_files(),

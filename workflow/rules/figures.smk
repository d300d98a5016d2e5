"""tables, slides -> figures: vector, raster, plotted values and caption; drawn anew when their module changes."""

from mil.figures import FIGURES


def figure_inputs(name, sites):
    """The files that a figure needs, from the kinds of artefact that its entry in the registry names."""
    files = {
        "predictions": expand("<results>/predictions/{experiment}.csv", experiment=EXPERIMENTS),
        "metrics": expand("<results>/metrics/{experiment}.csv", experiment=EXPERIMENTS),
        "comparisons": ["<results>/metrics/comparisons.csv"],
        "localisation": LOCALISATION,
        "baselines": expand("<results>/baselines/{endpoint}/metrics.csv", endpoint=ENDPOINTS),
        "rounds": expand("<results>/runs/{experiment}/rounds.csv", experiment=EXPERIMENTS),
        "runs": expand("<results>/runs/{experiment}/ledger.jsonl", experiment=EXPERIMENTS),
        "census": expand("<results>/census/{site}.csv", site=SITES),
        "bags": expand("<results>/bags/{endpoint}.csv", endpoint=ENDPOINTS),
        "flow": expand("<results>/bags/{endpoint}.flow.csv", endpoint=ENDPOINTS),
        "patients": [settings_of_cohort.slides.patients or settings_of_cohort.slides.sheet],
        "slides": [],
        "thumbnails": [manifest for site in sites for manifest in tile_manifests(site)],
        "features": [
            manifest for site in sites for encoder in ENCODERS for manifest in feature_manifests(site, encoder)
        ],
        "attention": expand("<results>/sites/{site}/attention/{experiment}", site=sites, experiment=EXPERIMENTS),
    }
    return [file for kind in FIGURES[name].needs for file in files[kind]]


def figure_files():
    """The caption file of every figure of the cohort; its other files lie beside it."""
    overall = [name for name in FIGURES if not FIGURES[name].per_site]
    by_site = [name for name in FIGURES if FIGURES[name].per_site]
    return expand("<results>/figures/{figure}.json", figure=overall) + expand(
        "<results>/figures/{figure}.{site}.json", figure=by_site, site=SITES
    )


rule settings:
    output:
        "<results>/config.json",
    log:
        "<logs>/settings.log",
    params:
        config=lambda wildcards: settings_of_cohort.model_copy(
            update={"report": ReportSpec(), "shard_size": 1}
        ).to_json(),
    shell:
        "printf '%s' {params.config:q} > {output} 2> {log}"


rule figure:
    input:
        settings="<results>/config.json",
        tables=lambda wildcards: figure_inputs(wildcards.figure, SITES),
        code=lambda wildcards: FIGURES[wildcards.figure].code,
    output:
        "<results>/figures/{figure}.json",
    log:
        "<logs>/figure/{figure}.log",
    wildcard_constraints:
        figure="|".join(name for name in FIGURES if not FIGURES[name].per_site) or "none",
    params:
        spec=lambda wildcards: settings_of_cohort.figures.to_json(),
        results=RESULTS,
    shell:
        "mil plot {wildcards.figure} --results {params.results} --spec {params.spec:q} --log {log}"


rule figure_of_site:
    input:
        settings="<results>/config.json",
        tables=lambda wildcards: figure_inputs(wildcards.figure, [wildcards.site]),
        code=lambda wildcards: FIGURES[wildcards.figure].code,
    output:
        "<results>/figures/{figure}.{site}.json",
    log:
        "<logs>/figure/{figure}.{site}.log",
    wildcard_constraints:
        figure="|".join(name for name in FIGURES if FIGURES[name].per_site) or "none",
    params:
        spec=lambda wildcards: settings_of_cohort.figures.to_json(),
        results=RESULTS,
    shell:
        "mil plot {wildcards.figure} --results {params.results} --site {wildcards.site} --spec {params.spec:q}"
        " --log {log}"


rule figures:
    input:
        figure_files(),

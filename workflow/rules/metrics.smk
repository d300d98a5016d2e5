"""predictions -> metrics: by site and strategy, with intervals; paired comparisons; attention against the truth."""

LOCALISATION = expand(
    "<results>/metrics/{experiment}.localisation.csv", experiment=EXPERIMENTS if settings_of_cohort.truth else []
)


rule score:
    input:
        predictions="<results>/predictions/{experiment}.csv",
    output:
        metrics="<results>/metrics/{experiment}.csv",
    log:
        "<logs>/score/{experiment}.log",
    params:
        spec=lambda wildcards: settings_of_cohort.metrics.to_json(),
        experiment=lambda wildcards: EXPERIMENTS[wildcards.experiment].to_json(),
    shell:
        "mil score {input.predictions} --spec {params.spec:q} --experiment {params.experiment:q} --out {output.metrics}"
        " --log {log}"


rule compare:
    input:
        settings="<results>/config.json",
        predictions=expand("<results>/predictions/{experiment}.csv", experiment=EXPERIMENTS),
    output:
        comparisons="<results>/metrics/comparisons.csv",
    log:
        "<logs>/compare.log",
    params:
        spec=lambda wildcards: settings_of_cohort.metrics.to_json(),
        results=RESULTS,
    shell:
        "mil compare {params.results} --spec {params.spec:q} --out {output.comparisons} --log {log}"


rule localise:
    input:
        settings="<results>/config.json",
        predictions="<results>/predictions/{experiment}.csv",
    output:
        localisation="<results>/metrics/{experiment}.localisation.csv",
    log:
        "<logs>/localise/{experiment}.log",
    params:
        spec=lambda wildcards: settings_of_cohort.metrics.to_json(),
        results=RESULTS,
    shell:
        "mil localise {params.results} --experiment {wildcards.experiment} --spec {params.spec:q}"
        " --out {output.localisation} --log {log}"

"""predictions -> metrics: by site and strategy, with intervals; paired comparisons; attention against the truth."""

from mil.workflow.code import code_of

LOCALISATION = expand(
    "<results>/metrics/{experiment}.localisation.csv", experiment=EXPERIMENTS if settings_of_cohort.truth else []
)
CLINICAL = expand("<results>/metrics/clinical/{table}.csv", table=["subgroups", "associations", "survival"])


rule score:
    input:
        predictions="<results>/predictions/{experiment}.csv",
        inner="<results>/runs/{experiment}/inner.csv",
        settings="<results>/inputs/metrics.json",
        code=code_of("metrics/score.py"),
    output:
        metrics="<results>/metrics/{experiment}.csv",
        curves="<results>/metrics/{experiment}.curves.csv",
        folds="<results>/metrics/{experiment}.folds.csv",
    log:
        "<logs>/score/{experiment}.log",
    benchmark:
        "<results>/benchmarks/score/{experiment}.tsv"
    priority: 5
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),  # minutes
    params:
        spec=lambda wildcards: settings_of_cohort.metrics.to_json(),
        experiment=lambda wildcards: EXPERIMENTS[wildcards.experiment].to_json(),
        endpoint=lambda wildcards: settings_of_cohort.endpoints[EXPERIMENTS[wildcards.experiment].endpoint].to_json(),
    shell:
        "mil score {input.predictions:q} --inner {input.inner:q} --spec {params.spec:q} --experiment {params.experiment:q}"
        " --endpoint {params.endpoint:q} --out {output.metrics:q} --log {log:q}"


rule compare:
    input:
        settings=["<results>/inputs/study.json", "<results>/inputs/metrics.json"],
        predictions=expand("<results>/predictions/{experiment}.csv", experiment=EXPERIMENTS),
        patients="<results>/inputs/patients.json",
        bags=expand("<results>/bags/{endpoint}.csv", endpoint=ENDPOINTS),
        census=expand("<results>/census/{site}.csv", site=SITES),
        reviews=list(settings_of_cohort.figures.reviews),
        code=code_of(
            *(f"metrics/{name}.py" for name in ("agreement", "clinical", "cohort", "comparison", "strategies"))
        ),
    output:
        comparisons="<results>/metrics/comparisons.csv",
        cohort="<results>/metrics/cohort.csv",
        reviews="<results>/metrics/reviews.csv",
        strategies="<results>/metrics/strategies.csv",
        clinical=CLINICAL,
    log:
        "<logs>/compare.log",
    benchmark:
        "<results>/benchmarks/compare/all.tsv"
    priority: 5
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),  # minutes
    params:
        spec=lambda wildcards: settings_of_cohort.metrics.to_json(),
        results=lambda wildcards: RESULTS,
    shell:
        "mil compare {params.results:q} --spec {params.spec:q} --out {output.comparisons:q} --log {log:q}"


rule localise:
    input:
        settings=["<results>/inputs/truth.json", "<results>/inputs/metrics.json"],
        predictions="<results>/predictions/{experiment}.csv",
        code=code_of("metrics/localisation.py"),
    output:
        localisation="<results>/metrics/{experiment}.localisation.csv",
        slides="<results>/metrics/{experiment}.slides.csv",
    log:
        "<logs>/localise/{experiment}.log",
    benchmark:
        "<results>/benchmarks/localise/{experiment}.tsv"
    priority: 5
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),  # minutes
    params:
        spec=lambda wildcards: settings_of_cohort.metrics.to_json(),
        results=lambda wildcards: RESULTS,
    shell:
        "mil localise {params.results:q} --experiment {wildcards.experiment:q} --spec {params.spec:q}"
        " --out {output.localisation:q} --log {log:q}"


# Besides training and prediction these two read more than one site's features: they train models, too.
rule baseline:
    input:
        settings=["<results>/inputs/study.json", "<results>/inputs/metrics.json"],
        bags="<results>/bags/{endpoint}.csv",
        census=expand("<results>/census/{site}.csv", site=SITES),
        patients="<results>/inputs/patients.json",
        features=[manifest for site in SITES for encoder in ENCODERS for manifest in feature_manifests(site, encoder)],
        predictions=expand("<results>/predictions/{experiment}.csv", experiment=EXPERIMENTS),
        code=code_of("baselines/write.py"),
    output:
        metrics="<results>/baselines/{endpoint}/metrics.csv",
    log:
        "<logs>/baseline/{endpoint}.log",
    benchmark:
        "<results>/benchmarks/baseline/{endpoint}.tsv"
    priority: 10  # the longest of the jobs that figures wait for
    resources:
        mem_mb=growing(8000),
        runtime=growing(240),  # minutes
    params:
        results=lambda wildcards: RESULTS,
        folder=lambda wildcards: f"{RESULTS}/baselines/{wildcards.endpoint}",
    shell:
        "mil baseline {params.results:q} --endpoint {wildcards.endpoint:q} --folder {params.folder:q} --log {log:q}"


rule deep_check:
    input:
        settings=["<results>/inputs/study.json", "<results>/inputs/metrics.json"],
        known=expand("<results>/checks/{endpoint}.inputs.csv", endpoint=ENDPOINTS),
        bags=expand("<results>/bags/{endpoint}.csv", endpoint=ENDPOINTS),
        patients="<results>/inputs/patients.json",
        features=[manifest for site in SITES for encoder in ENCODERS for manifest in feature_manifests(site, encoder)],
        predictions=expand("<results>/predictions/{experiment}.csv", experiment=EXPERIMENTS),
        code=code_of("leaks/deep_check.py"),
    output:
        findings="<results>/checks/deep.csv",
    log:
        "<logs>/deep_check.log",
    benchmark:
        "<results>/benchmarks/deep_check/all.tsv"
    resources:
        mem_mb=growing(8000),
        runtime=growing(240),  # minutes
    params:
        results=lambda wildcards: RESULTS,
        known=lambda wildcards, input: [f"--known={path}" for path in input.known],
    shell:
        "mil check --deep {params.results:q} {params.known:q} --out {output.findings:q} --log {log:q}"

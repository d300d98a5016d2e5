"""bags, features -> runs: an experiment's models over all folds; only training sites are read."""


# Compares patients of one site with those of another, so that it reads all sites; nothing of it goes into training. It depends on
# what makes training run again and on nothing else: settings of the report, or another column, must not cost hours.
rule input_check:
    input:
        bags="<results>/bags/{endpoint}.csv",
        features=lambda wildcards: [
            manifest
            for site in SITES
            for encoder in encoders_of(wildcards.endpoint)
            for manifest in feature_manifests(site, encoder)
        ],
    output:
        findings="<results>/checks/{endpoint}.inputs.csv",
    log:
        "<logs>/input_check/{endpoint}.log",
    benchmark:
        "<results>/benchmarks/input_check/{endpoint}.tsv"
    resources:
        mem_mb=growing(8000),
        runtime=growing(240),  # minutes
    params:
        results=lambda wildcards: RESULTS,
    shell:
        "mil check --inputs {params.results:q} --endpoint {wildcards.endpoint:q} --out {output.findings:q} --log {log:q}"


rule train:
    input:
        bags=lambda wildcards: f"<results>/bags/{EXPERIMENTS[wildcards.experiment].endpoint}.csv",
        features=lambda wildcards: [
            manifest
            for site in TRAIN_SITES
            for manifest in feature_manifests(site, EXPERIMENTS[wildcards.experiment].encoder)
        ],
        settings="<results>/inputs/experiments/{experiment}.json",
        # a leak ends the workflow before hours of training
        checked=lambda wildcards: f"<results>/checks/{EXPERIMENTS[wildcards.experiment].endpoint}.inputs.csv",
    output:
        weights="<results>/runs/{experiment}/weights.safetensors",
        models="<results>/runs/{experiment}/models.csv",
        rounds="<results>/runs/{experiment}/rounds.csv",
        inner="<results>/runs/{experiment}/inner.csv",
        ledger="<results>/runs/{experiment}/ledger.jsonl",
        spec="<results>/runs/{experiment}/spec.json",
    log:
        "<logs>/train/{experiment}.log",
    benchmark:
        "<results>/benchmarks/train/{experiment}.tsv"
    threads: 1
    resources:
        mem_mb=growing(16000),
        runtime=growing(720),  # minutes
    params:
        spec=lambda wildcards: EXPERIMENTS[wildcards.experiment].to_json(),
        endpoint=lambda wildcards: settings_of_cohort.endpoints[EXPERIMENTS[wildcards.experiment].endpoint].to_json(),
        folder=lambda wildcards: f"{RESULTS}/runs/{wildcards.experiment}",
        sites=lambda wildcards: f"{RESULTS}/sites",
        encoder=lambda wildcards: made_by(EXPERIMENTS[wildcards.experiment].encoder),
    shell:
        "mil train {input.bags:q} --sites {params.sites:q} --spec {params.spec:q} --endpoint {params.endpoint:q}"
        " --encoder {params.encoder:q} --folder {params.folder:q} --log {log:q}"

"""bags, features -> runs: an experiment's models over all folds; only training sites are read."""


rule train:
    input:
        bags=lambda wildcards: f"<results>/bags/{EXPERIMENTS[wildcards.experiment].endpoint}.csv",
        features=lambda wildcards: [
            manifest
            for site in TRAIN_SITES
            for manifest in feature_manifests(site, EXPERIMENTS[wildcards.experiment].encoder)
        ],
        settings="<results>/inputs/experiments/{experiment}.json",
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

"""runs -> predictions: every patient by the models that never saw them, and the attention of every tile."""


rule predict:
    input:
        run="<results>/runs/{experiment}/weights.safetensors",
        bags=lambda wildcards: f"<results>/bags/{EXPERIMENTS[wildcards.experiment].endpoint}.csv",
        features=lambda wildcards: [
            manifest
            for site in SITES
            for manifest in feature_manifests(site, EXPERIMENTS[wildcards.experiment].encoder)
        ],
        again=predicted_again,
    output:
        predictions="<results>/predictions/{experiment}.csv",
        patients="<results>/predictions/{experiment}.patients.csv",
        attention=[directory(f"<results>/sites/{site}/attention/{{experiment}}") for site in SITES],
    log:
        "<logs>/predict/{experiment}.log",
    benchmark:
        "<results>/benchmarks/predict/{experiment}.tsv"
    wildcard_constraints:
        experiment=any_of(EXPERIMENTS),  # else NAME.patients could be one
    priority: 10  # baselines and figures wait for all predictions
    resources:
        mem_mb=growing(8000),
        runtime=growing(240),  # minutes
    params:
        folder=lambda wildcards: f"{RESULTS}/runs/{wildcards.experiment}",
        sites=lambda wildcards: f"{RESULTS}/sites",
        encoder=lambda wildcards: made_by(EXPERIMENTS[wildcards.experiment].encoder),
    shell:
        "mil predict {params.folder:q} --bags {input.bags:q} --sites {params.sites:q} --encoder {params.encoder:q}"
        " --out {output.predictions:q} --log {log:q}"

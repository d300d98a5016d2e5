"""census, patient table -> bags: who is in, with which label, in which fold; written once."""


rule bag:
    input:
        census=expand("<results>/census/{site}.csv", site=SITES),
        labels="<results>/inputs/labels/{endpoint}.csv",
        settings="<results>/inputs/endpoints/{endpoint}.json",
    output:
        bags="<results>/bags/{endpoint}.csv",
        flow="<results>/bags/{endpoint}.flow.csv",
    log:
        "<logs>/bag/{endpoint}.log",
    benchmark:
        "<results>/benchmarks/bag/{endpoint}.tsv"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),  # minutes
    params:
        slides=lambda wildcards: settings_of_cohort.slides.to_json(),
        spec=lambda wildcards: settings_of_cohort.endpoints[wildcards.endpoint].to_json(),
        # Snakemake puts no quotes around an empty text, so that the option is left out with its value.
        covariates=lambda wildcards: [
            f"--covariates={','.join(names)}" for names in [covariates_of(wildcards.endpoint)] if names
        ],
        sites=lambda wildcards: f"{RESULTS}/sites",
        encoders=lambda wildcards: [f"--encoder={name}={made_by(name)}" for name in encoders_of(wildcards.endpoint)],
    shell:
        "mil bag {input.census:q} --slides {params.slides:q} --spec {params.spec:q} {params.covariates:q} --out {output.bags:q}"
        " --flow {output.flow:q} --sites {params.sites:q} {params.encoders:q} --log {log:q}"

"""slide sheet -> slides: which can be used, at what scale, and why the others cannot."""


rule check:
    input:
        shard="<results>/sites/{site}/shards/{shard}.csv",
        settings=lambda wildcards: (
            "<results>/sites/{site}/shards/slides.json"
            if wildcards.site in FEATURE_SITES
            else "<results>/inputs/slides.json"
        ),
        again=lambda wildcards: ordered_again("slides", wildcards),
    output:
        slides="<results>/sites/{site}/slides/{shard}.csv",
    log:
        "<logs>/check/{site}.{shard}.log",
    benchmark:
        "<results>/benchmarks/check/{site}.{shard}.tsv"
    resources:
        mem_mb=growing(4000),
        runtime=growing(240),  # minutes
    params:
        spec=lambda wildcards: slides_of(settings_of_cohort.slides, wildcards.site).to_json(),
    shell:
        "mil check --rows {input.shard:q} --spec {params.spec:q} --out {output.slides:q} --log {log:q}"


rule slides:
    input:
        shards=lambda wildcards: expand("<results>/sites/{{site}}/slides/{shard}.csv", shard=SHARDS[wildcards.site]),
        again=lambda wildcards: ordered_again("table", wildcards),
    output:
        "<results>/sites/{site}/slides.csv",
    log:
        "<logs>/slides/{site}.log",
    shell:
        "awk 'FNR > 1 || NR == 1' {input.shards:q} > {output:q} 2> {log:q}"


rule census:
    input:
        slides="<results>/sites/{site}/slides.csv",
        tiles=lambda wildcards: tile_manifests(wildcards.site),
        features=lambda wildcards: [m for encoder in ENCODERS for m in feature_manifests(wildcards.site, encoder)],
    output:
        "<results>/census/{site}.csv",
    log:
        "<logs>/census/{site}.log",
    shell:
        "mil census {input.slides:q} {input.tiles:q} {input.features:q} --out {output:q} 2> {log:q}"

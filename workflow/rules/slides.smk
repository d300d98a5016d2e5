"""slide sheet -> slides: which can be used, at what scale, and why the others cannot."""


rule check:
    input:
        sheet=ancient(settings_of_cohort.slides.sheet),
    output:
        slides="<results>/sites/{site}/slides.csv",
    log:
        "<logs>/check/{site}.log",
    resources:
        mem_mb=growing(4000),
        runtime=growing(240),  # minutes
    params:
        spec=lambda wildcards: settings_of_cohort.slides.to_json(),
        labels=",".join(sorted({settings_of_cohort.endpoints[name].column for name in ENDPOINTS})),
        rows=lambda wildcards: cohort.at(wildcards.site).to_csv(index=False),
        on_disk=lambda wildcards: state_on_disk(wildcards.site),
    shell:
        "mil check --site {wildcards.site:q} --spec {params.spec:q} --labels {params.labels:q} --out {output.slides:q}"
        " --log {log:q}"


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

"""tiles -> features: a frozen encoder's vector for every tile, one file a slide."""


rule extract:
    input:
        slides="<results>/sites/{site}/slides.csv",
        tiles="<results>/sites/{site}/tiles/shard{shard}.csv",
    output:
        manifest="<results>/sites/{site}/features/{encoder}/shard{shard}.csv",
    log:
        "<logs>/extract/{site}.{encoder}.{shard}.log",
    wildcard_constraints:
        site=any_of(set(SITES) - set(FEATURE_SITES)),
    threads: threads_per_shard
    resources:
        mem_mb=growing(16000),
        runtime=growing(720),  # minutes
    params:
        spec=lambda wildcards: settings_of_cohort.encoders[wildcards.encoder].to_json(),
        tiles=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/tiles",
        folder=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/features/{wildcards.encoder}",
        shard_size=settings_of_cohort.shard_size,
    shell:
        "mil extract {input.slides:q} --tiles {params.tiles:q} --shard {wildcards.shard:q} --shard-size {params.shard_size}"
        " --spec {params.spec:q} --folder {params.folder:q} --out {output.manifest:q} --threads {threads} --log {log:q}"


# A site with `slides.features` has no slides here: the features that another tool made are taken instead.
rule convert:
    input:
        slides="<results>/sites/{site}/slides.csv",
    output:
        manifest="<results>/sites/{site}/features/{encoder}/shard0.csv",
    log:
        "<logs>/convert/{site}.{encoder}.log",
    wildcard_constraints:
        site=any_of(FEATURE_SITES),
    resources:
        mem_mb=growing(4000),
        runtime=growing(240),  # minutes
    params:
        source=lambda wildcards: foreign_features(wildcards.site, wildcards.encoder),
        folder=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/features/{wildcards.encoder}",
        on_disk=lambda wildcards: features_on_disk(wildcards.site, wildcards.encoder),
    shell:
        "mil convert {params.source} {params.folder:q} --slides {input.slides:q} --log {log:q}"

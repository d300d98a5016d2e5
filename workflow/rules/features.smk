"""tiles -> features: a frozen encoder's vector for every tile, one file a slide."""


rule extract:
    input:
        slides="<results>/sites/{site}/slides/{shard}.csv",
        tiles="<results>/sites/{site}/tiles/shard{shard}.csv",
        settings="<results>/inputs/encoders/{encoder}.json",
        again=lambda wildcards: ordered_again(f"features.{wildcards.encoder}", wildcards),
    output:
        manifest="<results>/sites/{site}/features/{encoder}/shard{shard}.csv",
    log:
        "<logs>/extract/{site}.{encoder}.{shard}.log",
    benchmark:
        "<results>/benchmarks/extract/{site}.{encoder}.{shard}.tsv"
    wildcard_constraints:
        site=any_of(set(SITES) - set(FEATURE_SITES)),
    threads: threads_per_shard
    resources:
        mem_mb=growing(16000),
        runtime=growing(720),  # minutes
        # Changes no number, and is not tracked here as a parameter would be.
        batch_size=lambda wildcards: settings_of_cohort.encoders[wildcards.encoder].batch_size,
    params:
        spec=lambda wildcards: encoder_json(settings_of_cohort, wildcards.encoder),
        tiles=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/tiles",
        folder=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/features/{wildcards.encoder}",
    shell:
        "mil extract {input.slides:q} --tiles {params.tiles:q} --spec {params.spec:q} --batch-size {resources.batch_size}"
        " --folder {params.folder:q} --out {output.manifest:q} --threads {threads} --log {log:q}"


# A site with `slides.features` has no slides here: the features that another tool made are taken instead.
rule convert:
    input:
        slides="<results>/sites/{site}/slides/0.csv",
        source="<results>/sites/{site}/shards/features.{encoder}.json",
        again=lambda wildcards: ordered_again(f"features.{wildcards.encoder}", wildcards),
    output:
        manifest="<results>/sites/{site}/features/{encoder}/shard0.csv",
    log:
        "<logs>/convert/{site}.{encoder}.log",
    benchmark:
        "<results>/benchmarks/convert/{site}.{encoder}.tsv"
    wildcard_constraints:
        site=any_of(FEATURE_SITES),
    resources:
        mem_mb=growing(4000),
        runtime=growing(240),  # minutes
    params:
        source=lambda wildcards: foreign_features(wildcards.site, wildcards.encoder),
        folder=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/features/{wildcards.encoder}",
    shell:
        "mil convert {params.source} {params.folder:q} --slides {input.slides:q} --log {log:q}"

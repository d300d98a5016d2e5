"""tiles -> features: a frozen encoder's vector for every tile, one file a slide."""


rule extract:
    input:
        slides="<results>/sites/{site}/slides.csv",
        tiles="<results>/sites/{site}/tiles/shard{shard}.csv",
    output:
        manifest="<results>/sites/{site}/features/{encoder}/shard{shard}.csv",
    log:
        "<logs>/extract/{site}.{encoder}.{shard}.log",
    threads: 1
    resources:
        mem_mb=8000,
    params:
        spec=lambda wildcards: settings_of_cohort.encoders[wildcards.encoder].to_json(),
        tiles=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/tiles",
        folder=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/features/{wildcards.encoder}",
        shard_size=settings_of_cohort.shard_size,
    shell:
        "mil extract {input.slides} --tiles {params.tiles} --shard {wildcards.shard} --shard-size {params.shard_size}"
        " --spec {params.spec:q} --folder {params.folder} --out {output.manifest} --log {log}"

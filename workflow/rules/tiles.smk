"""slides -> tiles: where the tissue is, at one physical resolution."""


rule tile:
    input:
        slides="<results>/sites/{site}/slides/{shard}.csv",
        settings="<results>/inputs/tiles.json",
        again=lambda wildcards: ordered_again("tiles", wildcards),
    output:
        manifest="<results>/sites/{site}/tiles/shard{shard}.csv",
    log:
        "<logs>/tile/{site}.{shard}.log",
    benchmark:
        "<results>/benchmarks/tile/{site}.{shard}.tsv"
    resources:
        mem_mb=growing(4000),
        runtime=growing(480),  # minutes
    params:
        spec=lambda wildcards: settings_of_cohort.tiles.to_json(),
        folder=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/tiles",
        thumbnails=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/thumbnails",
    shell:
        "mil tile {input.slides:q} --spec {params.spec:q}"
        " --folder {params.folder:q} --thumbnails {params.thumbnails:q} --out {output.manifest:q} --log {log:q}"


rule contact_sheet:
    input:
        slides="<results>/sites/{site}/slides.csv",
        tiles=lambda wildcards: tile_manifests(wildcards.site),
    output:
        "<results>/sites/{site}/contact_sheet.jpg",
    log:
        "<logs>/contact_sheet/{site}.log",
    benchmark:
        "<results>/benchmarks/contact_sheet/{site}.tsv"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),  # minutes
    params:
        folder=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/tiles",
        thumbnails=lambda wildcards: f"{RESULTS}/sites/{wildcards.site}/thumbnails",
    shell:
        "mil contact {input.slides:q} --tiles {params.folder:q} --thumbnails {params.thumbnails:q} --out {output:q} --log {log:q}"

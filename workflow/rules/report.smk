"""figures -> report: one HTML file that opens without a network, and a slide viewer beside it."""


rule report:
    input:
        settings=expand("<results>/inputs/{name}.json", name=["study", "metrics", "report", "patients", "truth"]),
        figures=figure_files(),
        metrics=expand("<results>/metrics/{experiment}.csv", experiment=EXPERIMENTS),
        flow=expand("<results>/bags/{endpoint}.flow.csv", endpoint=ENDPOINTS),
        localisation=LOCALISATION,
        comparisons="<results>/metrics/comparisons.csv",
        leaks="<results>/checks/deep.csv",
        code=code_of("report/build.py", "report/slide_viewer.py"),
    output:
        report(
            "<results>/report/index.html",
            caption="../report/report.rst",
            category="Report",
            labels={"document": "The study's report"},
        ),
    log:
        "<logs>/report.log",
    benchmark:
        "<results>/benchmarks/report/all.tsv"
    resources:
        mem_mb=growing(8000),
        runtime=growing(60),  # minutes
    params:
        spec=lambda wildcards: settings_of_cohort.report.to_json(),
        results=lambda wildcards: RESULTS,
    shell:
        "mil report {params.results:q} --spec {params.spec:q} --out {output:q} --log {log:q}"


rule crate:
    input:
        report="<results>/report/index.html",
        code=code_of("report/crate.py"),
    output:
        crate="<results>/ro-crate-metadata.json",
    log:
        "<logs>/crate.log",
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),  # minutes
    params:
        results=lambda wildcards: RESULTS,
    shell:
        "mil crate {params.results:q} --log {log:q}"

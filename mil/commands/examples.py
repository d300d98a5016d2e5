"""An example and a page of the documentation for every command, shown below its help."""

import typer

EXAMPLES: dict[str, tuple[str, str]] = {
    "init": ("mil init mine", "own-cohort.md"),
    "demo": ("mil demo data/demo", "tutorial.md"),
    "config write": ("mil config write configs", "steps.md"),
    "config show": (
        "mil config show configs/cohorts/demo.yaml",
        "steps.md",
    ),
    "doctor": ("mil doctor configs/cohorts/mine.yaml", "cluster.md"),
    "plan": ("mil plan configs/cohorts/mine.yaml", "cluster.md"),
    "cohort": ("mil cohort tcga_brca data/tcga_brca", "own-cohort.md"),
    "check": ("mil check --spec configs/cohorts/mine.yaml:slides --labels response --strict", "own-cohort.md"),
    "tile": (
        "mil tile sites/a/slides.csv --folder sites/a/tiles --thumbnails sites/a/thumbnails --out sites/a/tiles/shard0.csv",
        "steps.md",
    ),
    "contact": (
        "mil contact sites/a/slides.csv --tiles sites/a/tiles --thumbnails sites/a/thumbnails --out contact.jpg",
        "steps.md",
    ),
    "extract": (
        "mil extract sites/a/slides.csv --tiles sites/a/tiles --folder features --out features/shard0.csv",
        "features.md",
    ),
    "census": ("mil census sites/a/slides.csv sites/a/tiles/shard0.csv --out census/a.csv", "steps.md"),
    "bag": ("mil bag census/a.csv --slides slides.yaml --flow flow.csv --out bags.csv", "steps.md"),
    "train": (
        "mil train bags.csv --sites sites --endpoint endpoint.yaml --spec experiment.yaml --folder runs/fedavg",
        "steps.md",
    ),
    "predict": ("mil predict runs/fedavg --bags bags.csv --sites sites --out predictions/fedavg.csv", "steps.md"),
    "score": (
        "mil score predictions/fedavg.csv --experiment experiment.yaml --out metrics/fedavg.csv",
        "steps.md",
    ),
    "compare": ("mil compare results/demo --out comparisons.csv", "steps.md"),
    "baseline": ("mil baseline results/demo --endpoint response --folder baselines", "steps.md"),
    "localise": (
        "mil localise results/demo --experiment attention_fedavg --out localisation.csv",
        "steps.md",
    ),
    "plot": ("mil plot roc_by_site --results results/demo", "steps.md"),
    "report": ("mil report results/demo --out report/index.html", "steps.md"),
    "view": ("mil view results/demo", "viewer.md"),
    "crate": ("mil crate results/demo", "steps.md"),
    "clinical": (
        "mil clinical configs/cohorts/mine.yaml",
        "own-cohort.md",
    ),
    "validate": ("mil validate results/demo --repair", "features.md"),
    "convert": ("mil convert stamp /data/stamp features --mpp 0.25", "features.md"),
    "licences": ("mil licences", "features.md"),
    "bench": ("mil bench --encoder efficientnet_lite0 --out rates.json", "cluster.md"),
    "encoders list": ("mil encoders list --json", "features.md"),
    "encoders show": ("mil encoders show uni2_h", "features.md"),
    "encoders fetch": ("mil encoders fetch phikon --weights weights", "features.md"),
    "encoders check": ("mil encoders check --weights weights", "features.md"),
}
"""Words of a command: its example, and the page of docs/ on which it is explained."""
HOSPITAL = {
    "server provision": "mil server provision server.yaml A.request.zip --key SHA256:...",
    "server start": "mil server start server.yaml",
    "server renew": "mil server renew server.yaml",
    "server revoke": "mil server revoke server.yaml B",
    "server canary": "mil server canary server.yaml",
    "server run": "mil server run server.yaml first",
    "server status": "mil server status server.yaml first",
    "server watch": "mil server watch server.yaml",
    "server key": "mil server key server.yaml",
    "site watch": "mil site watch site.yaml",
    "site check": "mil site check site.yaml",
    "site shared": "mil site shared site.yaml B-to-A.list.json",
    "site key": "mil site key site.yaml",
    "site join": "mil site join site.yaml A.signed.zip --fingerprint SHA256:...",
    "ledger verify": "mil ledger verify ledger.jsonl --site A=A.jsonl --protocol federation.yaml",
}
EXAMPLES |= {name: (example, "hospital.md") for name, example in HOSPITAL.items()}


def add_examples(app: typer.Typer, group: str = "") -> None:
    """Give every command of `app` and of its groups an epilog with its example and its page."""
    for command in app.registered_commands:
        assert command.callback is not None
        name = f"{group} {command.name or command.callback.__name__.replace('_', '-')}".strip()
        example, page = EXAMPLES[name]
        command.epilog = f"Example: [bold]{example}[/bold]\n\nDocumentation: docs/{page}"
    for part in app.registered_groups:
        assert part.typer_instance is not None
        add_examples(part.typer_instance, f"{group} {part.name}".strip())

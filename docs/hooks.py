"""Pages of the site that are made from the code when it is built, so that they cannot be out of date."""

import ast
import itertools
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mil import schemas
from mil.cli import app
from mil.config import Config
from mil.encoders.listing import list_encoders
from mil.workflow.figures import figure_inputs, protocol_numbers

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parent.parent
COLUMNS = {
    "slide_id": "name of the slide in the slide sheet",
    "patient_id": "name of the patient",
    "site": "hospital",
    "path": "the file",
    "state": "`ok`, or a short code for why it cannot be used",
    "reason": "the same in a sentence; blank if `ok`",
    "format": "file format of the slide",
    "width": "pixels of level 0",
    "height": "pixels of level 0",
    "levels": "size and scale of every level of the pyramid",
    "mpp": "microns per pixel of level 0",
    "mpp_source": "field of the file that the mpp was read from, or `sheet`",
    "objective_power": "magnification that the file names",
    "fingerprint": "hash of size and parts of the file; changes when the file is replaced",
    "bytes": "size of the file",
    "num_tiles": "number of tiles",
    "checksum": "hash of the content of the file that the row describes",
    "stage": "last stage that the slide reached",
    "slides": "slides of the patient, separated by `;`",
    "role": "`train` or `external`",
    "model": "number of the model within the run",
    "phase": "`select` (inner folds) or `refit` (all training patients of the outer fold)",
    "repeat": "number of the repetition of cross-validation, from 0",
    "fold": "outer fold, from 0",
    "inner": "inner fold, from 0",
    "round": "round of training",
    "train_loss": "mean loss of the training patients",
    "val_loss": "mean loss of the patients of the inner fold",
    "val_error": "what the number of rounds is chosen by, mean of the same patients: the Brier score of classes, else the loss",
    "val_auroc": "AUROC of the patients of the inner fold",
    "trained_on": "sites that the model was trained on, separated by `+`",
    "label": "true value of the endpoint; blank where it is not known",
    "probability": "mean over the models of the probability of a positive label",
    "score": "what the model predicts: a probability, a risk or a number",
    "split": "`held_out`, `transfer` or `external`",
    "patients": "number of patients",
    "positives": "number of positive patients",
    "models": "number of models whose scores were averaged or pooled",
    "metric": "name of the measure",
    "value": "the measure",
    "low": "lower bound of the interval",
    "high": "upper bound of the interval",
    "method": "how the interval was computed",
    "primary": "whether this is the row that report and figures quote",
    "endpoint": "name of the endpoint",
    "factor": "the setting in which the two experiments differ",
    "first": "first experiment",
    "first_trained_on": "sites that it was trained on",
    "second": "second experiment",
    "second_trained_on": "sites that it was trained on",
    "first_models": "number of models of the first experiment",
    "second_models": "number of models of the second experiment",
    "first_value": "measure of the first experiment",
    "second_value": "measure of the second experiment",
    "difference": "first minus second",
    "p": "p value of the difference",
    "p_adjusted": "p value after the correction",
    "correction": "correction for several tests, and within which group",
    "experiment": "name of the experiment",
    "against": "experiment that it is compared with",
    "against_value": "measure of that experiment",
    "tiles": "number of tiles",
    "positive_tiles": "number of tiles inside the annotated truth",
    "variable": "clinical variable",
    "level": "value of the variable, or its range",
    "auroc": "AUROC of the patients of the level",
    "low_adjusted": "lower bound after the correction for several tests",
    "high_adjusted": "upper bound after the correction for several tests",
    "curve": "`roc`, `roc_band`, `precision_recall`, `calibration`, `recalibration`, `confusion`, `net_benefit`, `net_benefit_of_all` or `survival`",
    "group": "true class (`roc` and `confusion` of several classes) or group of risk (`survival`: 1 higher, 0 lower)",
    "x": "1 - specificity, recall, mean score, threshold, time or place of the likeliest class",
    "y": "sensitivity, precision, share of positives, net benefit, survival or share of the class",
    "count": "number of patients with the level",
    "pattern": "pattern that reviewers look for",
    "first_total": "number of tiles with high attention",
    "second_total": "number of tiles with low attention",
    "odds_ratio": "odds of the pattern at high attention over those at low attention",
    "kappa": "agreement of the reviewers: Cohen's kappa of two, Fleiss' of more",
    "reviewers": "number of filled sheets",
    "p_differs": "p value that the levels of the variable differ",
}
"""Meaning of every column of `mil.schemas`."""


def on_files(files: "Files", config: Any) -> "Files":
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {
        "index.md": _from_root("README.md"),
        "changelog.md": _from_root("CHANGELOG.md"),
        "contributing.md": _from_root("CONTRIBUTING.md"),
        "reference/config.md": config_page(),
        "reference/commands.md": commands_page(),
        "reference/tables.md": tables_page(),
        "reference/encoders.md": encoders_page(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files outside the documentation become names."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)


def _from_root(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    return re.sub(
        r"(?<!!)\[([^\]]+)\]\(([^):]+)\)",
        lambda link: link[0] if (ROOT / "docs" / link[2]).exists() else f"{link[1]} (`{link[2]}`)",
        text,
    )


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)]) + "\n"


def config_page() -> str:
    """Every settings key with its default, its type and its meaning, by section."""
    schema = Config.model_json_schema()
    about = "The same with every default in place: `configs/default.yaml`. An unknown key is an error.\n"
    return "\n".join([f"# Settings\n\n{about}", *_sections({"Top level": schema, **schema["$defs"]})])


def hospital_page() -> str:
    """Every key of the three files of a federation between hospitals; of the experiment and the endpoint only where they are explained."""
    from mil.hospital.config import FederationSpec
    from mil.hospital.parties import ServerSpec, SiteSpec
    from mil.specs.endpoints import EndpointSpec
    from mil.specs.experiments import ExperimentSpec

    federation = FederationSpec.model_json_schema()
    elsewhere = {
        name
        for kind in (ExperimentSpec, EndpointSpec)
        for name in (kind.__name__, *kind.model_json_schema().get("$defs", {}))
    }
    about = (
        "What stands in the files of [a federation between hospitals](hospital.md), key by key. An unknown key is an error. The keys of\n"
        "`experiment` and `endpoint` are those of a cohort file: `configs/schema.json` explains them, and the page Settings of\n"
        "`mkdocs serve`.\n\nThis page is made by `python docs/hooks.py`.\n"
    )
    sections = {
        "federation.yaml": federation,
        **{name: section for name, section in federation["$defs"].items() if name not in elsewhere},
        "site.yaml": SiteSpec.model_json_schema(),
        "server.yaml": ServerSpec.model_json_schema(),
    }
    return "\n".join(["# Keys of federation.yaml, site.yaml and server.yaml\n", about, *_sections(sections)])


def _sections(sections: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A heading and a table of keys for every section of a JSON schema that has keys."""
    known = {name.removesuffix("Spec") for name in sections}
    for name, section in sections.items():
        rows = [
            (
                f"`{key}`",
                _type(value, known),
                _default(value) or ("must be given" if key in section.get("required", ()) else ""),
                value.get("description", ""),
            )
            for key, value in section.get("properties", {}).items()
            if key != "version"
        ]
        if rows:
            about = section.get("description", "")
            yield f"## {name.removesuffix('Spec')}\n\n{about}\n\n{_table(('key', 'type', 'default', 'meaning'), rows)}"


def _type(value: dict[str, Any], known: Collection[str]) -> str:
    if "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1].removesuffix("Spec")
        return f"[{name}](#{name.lower()})" if name in known else name
    for key in ("anyOf", "oneOf", "allOf"):
        if key in value:
            return ", ".join(dict.fromkeys(_type(choice, known) for choice in value[key]))
    if isinstance(entries := value.get("additionalProperties"), dict) and "$ref" in entries:
        return f"by name: {_type(entries, known)}"
    kind = str(value.get("type", "any"))
    bounds = [f"{word} {value[key]}" for key, word in BOUNDS.items() if key in value]
    return f"{kind} ({', '.join(bounds)})" if bounds else "none" if kind == "null" else kind


BOUNDS = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}


def _default(value: dict[str, Any]) -> str:
    return f"`{json.dumps(value['default'])}`" if "default" in value and len(str(value["default"])) < 60 else ""


def commands_page() -> str:
    """Every command with its arguments and options."""
    parts = [
        "# Commands\n\n`mil COMMAND --help` prints the same. `mil --install-completion` completes names in your shell.\n"
    ]
    for path, command in commands_of(typer.main.get_command(app)):
        rows = [
            (
                f"`{', '.join(one.opts) if one.opts[0].startswith('-') else one.name.upper()}`",
                getattr(one, "help", "") or "",
            )
            for one in command.params
            if one.name != "help"
        ]
        example, _, page = str(command.epilog).partition("\n\n")
        example = re.sub(r"Example: \[bold\](.*)\[/bold\]", r"```\n\1\n```", example)
        page = re.sub(r"docs/(\S+)", r"[\1](../\1)", page)
        parts.append(
            f"## mil {' '.join(path)}\n\n{command.help}\n\n{_table(('argument', 'meaning'), rows)}\n{example}\n\n{page}\n"
        )
    return "\n".join(parts)


def commands_of(group: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command below `group` with its words."""
    found = []
    for name, command in group.commands.items():
        found += commands_of(command, (*path, name)) if hasattr(command, "commands") else [((*path, name), command)]
    return found


def tables_page() -> str:
    """Every table of `mil.schemas` with its columns."""
    parts = ["# Files and columns\n\nTables are CSV with a header. `R` in a path is `results/<cohort>`.\n"]
    body = ast.parse(Path(str(schemas.__file__)).read_text(encoding="utf-8")).body
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(after, ast.Expr):
            name, about = node.targets[0].id, str(ast.literal_eval(after.value))
            columns = getattr(schemas, name)
            if isinstance(columns, tuple):
                rows = [(f"`{column}`", COLUMNS.get(column, "")) for column in columns]
                parts.append(f"## {name.capitalize()}\n\n{about}\n\n{_table(('column', 'meaning'), rows)}")
    return "\n".join(parts)


def figures_page() -> str:
    """Every figure with its number in the protocol, what it shows, the commands that draw it, what it reads, and its picture."""
    known, rows = figure_inputs(), []
    for name, number in protocol_numbers().items():
        site = " --site SITE" if known[name].per_site else ""
        target = number.split(", ")[0] or name
        picture = f"images/figures/{name}.webp"
        rows.append(
            (
                number or "none",
                f"{known[name].title}<br>`{name}`{', one per site' if site else ''}",
                f"`snakemake {target}`<br>`mil plot {name}{site}`",
                ", ".join(known[name].needs),
                f"[![{known[name].title}]({picture})]({picture})"
                if (ROOT / "docs" / picture).is_file()
                else "none in the demo",
            )
        )
    about = (
        "The numbers are those of a list that was reconstructed from the paper's claims, not the journal's own\n"
        "(`mil/paper.py`). `snakemake F2a --configfile configs/cohorts/mine.yaml` draws every figure with that number from no\n"
        "more than it needs; `mil plot F2a --results results/mine` does so from results that are there. Each figure comes as\n"
        "PDF, SVG and PNG, with its values (CSV) and its caption (JSON). Pictures: the demo's.\n\n"
        "This page is made by `python docs/hooks.py`.\n"
    )
    return f"# Figures\n\n{about}\n{_table(('number', 'figure', 'commands', 'reads', 'picture'), rows)}"


def encoders_page() -> str:
    """Every registered encoder."""
    header = ("name", "width", "input px", "mpp", "access", "weights' licence", "summary")
    rows = [
        (
            f"`{row['name']}`",
            row["width"],
            row["input_px"] or "any",
            row["mpp"] or "",
            "ask" if row["gated"] else "open",
            row["weights_licence"],
            row["summary"],
        )
        for row in list_encoders()
    ]
    return f"# Encoders\n\n{_table(header, rows)}"


if __name__ == "__main__":
    (ROOT / "docs/figures.md").write_text(figures_page(), encoding="utf-8")
    (ROOT / "docs/hospital_keys.md").write_text(hospital_page(), encoding="utf-8")

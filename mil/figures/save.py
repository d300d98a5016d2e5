"""A drawn figure -> its files: pictures, plotted values (CSV) and words (JSON), each complete or absent."""

import json
from pathlib import Path

from mil.config import FiguresSpec
from mil.figures.registry import FIGURES, Drawn
from mil.figures.style import MM_AN_INCH, use_style
from mil.files import replacing, write_text
from mil.tables import write_table

SUFFIXES = ("pdf", "svg", "png")
SHAPING = ("GDEF", "GPOS", "GSUB", "STAT")


def save(name: str, drawn: Drawn, folder: str | Path, spec: FiguresSpec) -> list[Path]:
    """Write `{name}.csv`, `{name}.json` and, unless left out, the pictures; older pictures are removed. Returns the paths.

    `name` is a figure's name, or `{figure}.{site}` for one that is drawn a site.
    """
    folder = Path(folder)
    formats = spec.formats if drawn.figure is not None else ()
    for suffix in SUFFIXES:
        if suffix not in formats:
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    if drawn.figure is not None:
        with use_style():  # laid out once, for all formats alike
            if (engine := drawn.figure.get_layout_engine()) is not None:
                engine.execute(drawn.figure)
            drawn.figure.set_layout_engine("none")
        if "pdf" in formats:
            _drop_shaping_tables()
        for suffix in formats:
            with replacing(folder / f"{name}.{suffix}") as partial, use_style():
                drawn.figure.savefig(partial, format=suffix, dpi=spec.dpi, metadata=_undated(suffix))
    for path, content in drawn.files.items():
        with replacing(folder / name / path) as partial:
            partial.write_bytes(content)
    write_table(drawn.data, folder / f"{name}.csv")
    words = {
        "name": name,
        "title": drawn.title or FIGURES[name.split(".")[0]].title,
        "caption": drawn.caption,
        "n": drawn.n,
        "left_out": drawn.left_out,
        "is_table": drawn.is_table,
        "width_mm": 0 if drawn.figure is None else round(drawn.figure.get_figwidth() * MM_AN_INCH, 1),
        "formats": list(formats),
    }
    write_text(folder / f"{name}.json", json.dumps(words, indent=1, ensure_ascii=False) + "\n")
    return [folder / f"{name}.{suffix}" for suffix in (*formats, "csv", "json")]


def _drop_shaping_tables() -> None:
    """Fonts in a PDF come without the tables that shape text, since each glyph has its position there.

    Matplotlib leaves it to fontTools' defaults which tables a font in a PDF has. To reduce these tables to the glyphs used takes a
    third of the time of drawing, for every font of every figure.
    """
    from fontTools.subset import Options  # as matplotlib imports it, only for a PDF

    dropped = getattr(Options, "_drop_tables_default", None)  # no public name; without it a PDF only takes longer
    if dropped is not None:
        Options._drop_tables_default = [*(name for name in dropped if name not in SHAPING), *SHAPING]


def _undated(suffix: str) -> dict[str, str | None]:
    """Metadata without a date, so that the same values give the same bytes."""
    return {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}[suffix]  # type: ignore[return-value]

"""What is in a figure's files."""

import io
import re
import zlib

from fontTools.ttLib import TTFont

from mil.config import FiguresSpec
from mil.figures.registry import Drawn
from mil.figures.save import SHAPING, save
from mil.figures.style import new_figure, use_style


def test_fonts_in_a_pdf_hold_glyphs_and_no_tables_that_shape_text(tmp_path):
    """They are half of the file and a third of the time of drawing, and nothing reads them there."""
    with use_style():
        picture = new_figure(60, 40, by_hand=True)
        picture.text(0.1, 0.5, "AUROC 0.81")
    save("kaplan_meier", Drawn(figure=picture), tmp_path, FiguresSpec(formats=("pdf",)))
    content = (tmp_path / "kaplan_meier.pdf").read_bytes()
    streams = [zlib.decompress(one) for one in re.findall(rb"stream\n(x.*?)\nendstream", content, re.DOTALL)]
    (font,) = [TTFont(io.BytesIO(one)) for one in streams if one.startswith(b"\0\1\0\0")]
    assert not set(SHAPING) & set(font.keys())
    assert {"glyf", "head", "hhea", "hmtx", "loca", "maxp"} <= set(font.keys())

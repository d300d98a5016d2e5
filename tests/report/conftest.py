"""The report of the shared results, with every figure, of two sites where it is drawn per site, and the viewer beside it."""

import pytest
from cohort_results import shared_results

from mil.config import ReportSpec
from mil.figures import FIGURES, draw_figure
from mil.files import write_text
from mil.report.build import build
from mil.report.slide_viewer import write_viewer
from mil.results.results import Results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    small_results = shared_results(tmp_path_factory.getbasetemp())
    for name in FIGURES:
        for site in small_results.sites[:2] if FIGURES[name].per_site else [None]:
            file = f"{name}.{site}.json" if site else f"{name}.json"
            if not (small_results.folder / "figures" / file).is_file():  # other tests may have drawn it
                draw_figure(name, small_results, small_results.config.figures, site)
    return small_results


@pytest.fixture(scope="module")
def viewer(results, tmp_path_factory):
    """The folder of the viewer, and the slides that it holds."""
    folder = tmp_path_factory.mktemp("page") / "viewer"
    return folder, write_viewer(results, folder, ReportSpec(viewer_slides=1, viewer_px=1024))


@pytest.fixture(scope="module")
def report(results, viewer):
    return build(results, in_viewer=viewer[1])


@pytest.fixture(scope="module")
def page(report, viewer):
    path = viewer[0].with_name("index.html")
    for name, text in report.pages.items():
        write_text(path.parent / name, text)
    return path

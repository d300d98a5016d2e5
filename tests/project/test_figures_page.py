"""The page of figures is what the code says today."""

import importlib.util


def test_the_page_of_figures_is_up_to_date(repository):
    spec = importlib.util.spec_from_file_location("hooks", repository / "docs/hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = (repository / "docs/figures.md").read_text(encoding="utf-8")
    assert text == hooks.figures_page(), "run: python docs/hooks.py"
    keys = (repository / "docs/hospital_keys.md").read_text(encoding="utf-8")
    assert keys == hooks.hospital_page(), "run: python docs/hooks.py"

"""Generated pages are what the code says today, and no link leads nowhere."""

import importlib.util
import re


def test_the_page_of_figures_is_up_to_date(repository):
    spec = importlib.util.spec_from_file_location("hooks", repository / "docs/hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = (repository / "docs/figures.md").read_text(encoding="utf-8")
    assert text == hooks.figures_page(), "run: python docs/hooks.py"
    keys = (repository / "docs/hospital_keys.md").read_text(encoding="utf-8")
    assert keys == hooks.hospital_page(), "run: python docs/hooks.py"


def test_every_link_between_pages_leads_to_a_file_of_the_clone(repository):
    for page in [*repository.glob("*.md"), *repository.glob("docs/*.md")]:
        links = re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], page

"""What axe-core finds wrong in the pages: nothing."""

import pytest
from browser import needs_browser, opened, violations

pytestmark = [pytest.mark.extended, needs_browser]


@pytest.mark.parametrize("file", ["index.html", "checklist.html", "viewer/index.html"])
@pytest.mark.parametrize("size", [(1440, 900), (390, 844)])
def test_no_rule_of_axe_is_broken(page, file, size):
    with opened((page.parent / file).as_uri(), *size) as tab:
        if file.startswith("viewer"):
            tab.wait_for_function("viewer.world.getItemCount() > 0")
            tab.keyboard.press("n")
            tab.wait_for_timeout(600)
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            assert violations(tab) == []

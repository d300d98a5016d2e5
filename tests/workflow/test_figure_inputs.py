"""What the rules read of each figure's source is what the registry holds after importing all of them."""

import subprocess
import sys

from mil.figures import FIGURES
from mil.workflow.figures import figure_inputs


def test_the_source_says_what_the_registry_says():
    registered = {name: (FIGURES[name].needs, FIGURES[name].per_site, FIGURES[name].code) for name in FIGURES}
    assert {name: (one.needs, one.per_site, one.code) for name, one in figure_inputs().items()} == registered


def test_the_snakefile_imports_nothing_heavy(repository):
    """Every cluster job reads the Snakefile: what `workflow/` imports of `mil` loads no network, figure or survival library."""
    lines = [
        line
        for path in sorted((repository / "workflow/rules").glob("*.smk"))
        for line in path.read_text().splitlines()
        if line.startswith("from mil")
    ]
    heavy = "{'torch', 'matplotlib', 'lifelines', 'scipy', 'sklearn', 'cv2'} & set(sys.modules)"
    script = "\n".join([*lines, "import sys", f"assert not {heavy}, {heavy}"])
    subprocess.run([sys.executable, "-c", script], check=True, cwd=repository)

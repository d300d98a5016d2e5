"""The packages of the extra `hospital`: nothing else needs them; and what the digest of the code covers."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mil
from mil.hospital.identity import code_digest, import_closure

pytestmark = pytest.mark.slow

FOLDER = Path(mil.__file__).parent
EXTRA = {"nvflare", "dp_accounting", "cryptography", "opacus", "tenseal"}
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(['nvflare', 'dp_accounting', 'cryptography', 'opacus'])); "


def test_no_module_but_the_hospitals_imports_the_extra() -> None:
    for path in FOLDER.rglob("*.py"):
        if "hospital" in path.relative_to(FOLDER).parts:
            continue
        text = path.read_text()
        if not any(word in text for word in (*EXTRA, "hospital")):
            continue
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & EXTRA, path
            inside = path == FOLDER / "commands" / "hospital.py"
            assert inside or not any(name.startswith("mil.hospital") for name in names), path


@pytest.mark.parametrize("words", [["server", "status", "server.yaml", "run"], ["site", "check", "site.yaml"]])
def test_without_the_extra_a_hospital_command_says_how_to_install_it(words: list[str]) -> None:
    code = f"{WITHOUT}sys.argv = ['mil', *{words!r}]; from mil.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = "a federation between hospitals needs cryptography, dp_accounting, nvflare; in the folder of mil, `pip install -e '.[hospital]'`"
    assert said in " ".join(done.stderr.split())


def test_the_digest_of_the_code_covers_what_a_site_runs_and_no_figure(tmp_path: Path) -> None:
    copy = shutil.copytree(FOLDER, tmp_path / "mil", ignore=shutil.ignore_patterns("__pycache__"))
    before = code_digest(copy)
    assert before == code_digest(FOLDER)
    covered = {path.relative_to(copy).as_posix() for path in import_closure(copy)}
    assert {"training/client.py", "rng.py", "hospital/site.py", "hospital/server.py", "hdf5.py"} <= covered
    assert not {name.split("/")[0] for name in covered} & {"figures", "report", "synthetic", "slides", "commands"}
    figure = next((copy / "figures").rglob("*.py"))
    for path, counts in {figure: False, copy / "training" / "client.py": True, copy / "rng.py": True}.items():
        whole = path.read_text()
        path.write_text(whole + "# a comment more\n")
        assert (code_digest(copy) != before) == counts, path
        path.write_text(whole)

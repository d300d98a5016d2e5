"""A module -> the files that its numbers depend on, read from the source: inputs of the rules that must run again after an edit."""

import re
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
EVALUATION = ("baselines", "endpoints", "figures", "leaks", "metrics", "report", "statistics")
"""Folders of `mil` whose code is followed. What is trained and predicted has versions in its settings instead."""
IMPORT = re.compile(r"^\s*from (mil(?:\.\w+)*) import (\([^)]*\)|[^\n]+)", re.MULTILINE)


def code_of(*modules: str) -> list[str]:
    """Paths of the modules (`metrics/score.py`, below `mil/`) and of all evaluation code that they import, sorted."""
    paths: set[Path] = set()
    waiting = [PACKAGE / name for name in modules]
    while waiting:
        path = waiting.pop()
        if path not in paths:
            paths.add(path)
            waiting += _imported(path)
    return sorted(map(str, paths))


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    """Files of evaluation code that the file imports."""
    files = []
    for origin, names in IMPORT.findall(path.read_text(encoding="utf-8")):
        folder = PACKAGE.joinpath(*origin.split(".")[1:])
        candidates = [folder.with_suffix(".py"), *(folder / f"{name}.py" for name in re.findall(r"\w+", names))]
        if origin == "mil" or folder.is_dir():
            candidates.append(folder / "__init__.py")
        files += [file for file in candidates if file.is_file() and file.relative_to(PACKAGE).parts[0] in EVALUATION]
    return tuple(dict.fromkeys(files))

"""Figure modules -> what the rules need to know of each figure, read from the source without importing matplotlib."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mil.errors import MilError, nearest
from mil.paper import rank_of

FOLDER = Path(__file__).parent.parent / "figures"


@dataclass(frozen=True)
class FigureInputs:
    """One figure as the rules see it; the fields are those of `mil.figures.registry.Entry`."""

    needs: tuple[str, ...]
    """Kinds of results that it reads."""
    per_site: bool
    """Whether there is one per site."""
    code: str
    """Path of its module."""
    title: str
    number: str
    """Number in the protocol's list, '' without."""


@cache
def figure_inputs() -> dict[str, FigureInputs]:
    """Name -> inputs of every figure: each module of `mil/figures` whose function has the decorator `@figure(...)`."""
    inputs = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "\n@figure(" not in text:
            continue
        for node in ast.parse(text).body:
            for call in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "figure":
                    given = {word.arg: word.value for word in call.keywords}
                    needs = given.get("needs") or call.args[1]
                    per_site = given.get("per_site") or (call.args[2] if len(call.args) > 2 else ast.Constant(False))
                    inputs[path.stem] = FigureInputs(
                        ast.literal_eval(needs),
                        bool(ast.literal_eval(per_site)),
                        str(path),
                        ast.literal_eval(given.get("title") or call.args[0]),
                        ast.literal_eval(given.get("number", ast.Constant(""))),
                    )
    return inputs


@cache
def protocol_numbers() -> dict[str, str]:
    """Name of a figure -> its number in the protocol's list (`mil/paper.py`), in the list's order; '' for the others."""
    numbers = {name: inputs.number for name, inputs in figure_inputs().items()}
    return dict(sorted(numbers.items(), key=lambda item: rank_of(item[1])))


def names_of(figures: list[str]) -> list[str]:
    """Names of figures given by name or by number in the protocol (`F2a`); a `MilError` for one that is neither."""
    names: list[str] = []
    for given in figures:
        if given in figure_inputs():
            names.append(given)
            continue
        of_number = [name for name, number in protocol_numbers().items() if given in number.split(", ")]
        if not of_number:
            raise MilError(f"unknown figure '{given}'; {nearest(given, figure_inputs())} (`mil plot list` has all)")
        names += of_number
    return names

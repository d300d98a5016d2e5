"""Change the code that makes numbers, one operator, constant or name at a time, and see whether a test fails: docs/mutants.md.

    python benchmarks/mutants.py [MODULE ...]

Each mutant lives in a process of its own, forked from one that has imported the module and its tests: functions get the code of the
mutant, then the module's own fast tests run until one fails. mutmut and cosmic-ray make more mutants, but start pytest anew for each:
mutmut ran 10 of the 351 mutants of `mil/tiles/grid.py` a minute, this program some 100. A mutant that no test kills must stand in
`benchmarks/mutants.json` with the reason why it changes no number; else the exit code is 1.
"""

import ast
import copy
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
REASONS = Path(__file__).with_suffix(".json")
TARGET = ROOT / "docs" / "mutants.md"
FAST = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not extended"]
LIMIT_S = 60

# module: its functions (none: all), test files, pytest's -k
MODULES: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "mil.tiles.grid": ((), ("tests/tiles/test_grid.py",), ""),
    "mil.tissue": ((), ("tests/tissue/test_tissue.py",), "not published"),
    "mil.tissue.masks": ((), ("tests/tissue/test_tissue.py",), "not published"),
    "mil.tissue.unscanned": ((), ("tests/tissue/test_tissue.py",), "not published"),
    "mil.bags.table": (("deal_folds", "_deal", "_strata", "patients_needed"), ("tests/bags/test_bags.py",), "fold"),
    "mil.training.protocol": ((), ("tests/training/test_protocol.py",), ""),
    "mil.statistics.delong": ((), ("tests/statistics/test_delong.py",), ""),
    "mil.statistics.folds": ((), ("tests/statistics/test_folds.py",), ""),
    "mil.strategies.aggregation": ((), ("tests/strategies/test_aggregation.py",), ""),
    "mil.training.optimisers": (("clip", "schedule"), ("tests/training/test_protocol.py",), ""),
    "mil.hospital.privacy": (("clipped",), ("tests/hospital/test_privacy.py",), "clipping"),
    "mil.hdf5": ((), ("tests/core/test_hdf5.py",), ""),
    "mil.slides.scale": ((), ("tests/slides/test_scale.py",), ""),
    "mil.models.attention": ((), ("tests/models/test_models.py",), "attention"),
    "mil.predictions.attention": ((), ("tests/predictions/test_predictions.py",), "attention"),
}

COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}  # fmt: skip
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv,
            ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift}  # fmt: skip
PAIRS = ("min max", "minimum maximum", "floor ceil", "any all", "argmin argmax", "mean sum", "zeros ones", "width height", "mpp_x mpp_y",
         "per_x per_y", "columns rows", "left top", "side_x side_y", "train watched", "positive negative", "positives negatives",
         "first second", "low high", "up down", "losses counts", "outer inner", "cumsum cumprod", "erode dilate", "norm_ppf norm_sf")  # fmt: skip
SWAPPED = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
SKIPPED = (ast.Raise, ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom, ast.arguments)
WITHOUT_EFFECT = {"rint", "round", "floor", "clip", "abs", "sqrt", "log", "exp", "sorted", "square", "clamp", "double"}


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one thing changed, in each way that we know."""

    def changed(**fields: object) -> ast.AST:
        other = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return other

    match node:
        case ast.Compare(ops=[operator, *rest]) if type(operator) in COMPARED:
            yield changed(ops=[COMPARED[type(operator)](), *rest])
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in COMPUTED:
            yield changed(op=COMPUTED[type(operator)]())
        case ast.BoolOp(op=operator):
            yield changed(op=ast.Or() if isinstance(operator, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield changed(value=not value)
        case ast.Constant(value=int(value)):
            yield changed(value=value + 1)
        case ast.Constant(value=float(value)):
            yield changed(value=value * 1.5 + (value == 0))
        case ast.Name(id=name, ctx=ast.Load()) if name in SWAPPED:
            yield changed(id=SWAPPED[name])
        case ast.Attribute(attr=name) if name in SWAPPED:
            yield changed(attr=SWAPPED[name])
        case ast.IfExp():
            yield node.body
            yield node.orelse
        case ast.If() | ast.While():
            yield changed(test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in WITHOUT_EFFECT and (node.args or isinstance(node.func, ast.Attribute)):
            yield node.args[0] if node.args and name != "clamp" else node.func.value  # type: ignore[union-attr]
        if len(node.args) == 2 and all(isinstance(one, ast.Name | ast.Attribute) for one in node.args):
            yield changed(args=node.args[::-1])


def mutants(tree: ast.Module, wanted: tuple[str, ...]) -> Iterator[tuple[int, str, ast.Module]]:
    """(line, what was changed, the whole module) of every mutant of the wanted functions."""

    def walk(
        node: ast.AST, path: tuple[tuple[str, int | None], ...], inside: bool
    ) -> Iterator[tuple[tuple, ast.AST, ast.AST]]:
        if isinstance(node, SKIPPED):
            return
        if inside:
            for other in variants(node):
                yield path, node, other
        for name, value in ast.iter_fields(node):
            if name in {"annotation", "returns", "decorator_list"}:
                continue
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST):
                    is_wanted = inside or (isinstance(child, ast.FunctionDef) and (not wanted or child.name in wanted))
                    yield from walk(child, (*path, (name, index)), is_wanted)

    for path, node, other in walk(tree, (), False):
        module = copy.deepcopy(tree)
        parent: ast.AST = module
        for name, index in path[:-1]:
            parent = getattr(parent, name) if index is None else getattr(parent, name)[index]
        name, index = path[-1]
        if index is None:
            setattr(parent, name, other)
        else:
            getattr(parent, name)[index] = other
        before, after = (ast.unparse(one.test if isinstance(one, ast.If | ast.While) else one) for one in (node, other))
        yield node.lineno, f"`{before}` -> `{after}`".replace("\n", " "), ast.fix_missing_locations(module)  # type: ignore[attr-defined]


def functions(code: CodeType, prefix: str = "") -> dict[str, CodeType]:
    """Code of the functions and methods of a compiled module, by qualified name."""
    found = {}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found |= {inner.co_qualname: inner} | functions(inner)
    return found


def put(module: ModuleType, code: CodeType) -> None:
    """Give the functions of `module` the code of the mutant."""
    new = functions(code)
    owners = [
        module,
        *(one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__),
    ]
    for owner in owners:
        for one in vars(owner).values():
            one = getattr(one, "__wrapped__", getattr(one, "__func__", getattr(one, "fget", one)))
            if isinstance(one, FunctionType) and one.__module__ == module.__name__ and one.__qualname__ in new:
                one.__code__ = new[one.__qualname__]


def killed(module: ModuleType, mutant: ast.Module, arguments: list[str]) -> bool:
    """Whether a test fails, or does not end, with the mutant."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        signal.alarm(LIMIT_S)
        try:
            put(module, compile(mutant, module.__file__ or "", "exec"))
            os._exit(1 if pytest.main(arguments) == 0 else 0)
        except BaseException:  # noqa: BLE001  the process ends here
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return status != 1 << 8


def run(name: str) -> list[tuple[str, bool]]:
    """Every mutant of a module in words, and whether it was killed."""
    os.chdir(ROOT)
    wanted, files, chosen = MODULES[name]
    arguments = [*FAST, *(("-k", chosen) if chosen else ()), *(str(ROOT / file) for file in files)]
    started = time.monotonic()
    if pytest.main(arguments) != 0:
        raise RuntimeError(f"{name}: its tests fail without a mutant")
    print(f"{name}: its tests take {time.monotonic() - started:.1f} s", flush=True)
    module = importlib.import_module(name)
    tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
    found = []
    for line, words, mutant in mutants(tree, wanted):
        is_dead = killed(module, mutant, arguments)
        if not is_dead:
            print(f"    survives: {name} line {line}: {words}", flush=True)
        found.append((words, is_dead))
    return found


def main() -> None:
    """Run the modules in a process each, print what survives, and write the page where every module was run."""
    reasons: dict[str, dict[str, str]] = json.loads(REASONS.read_text(encoding="utf-8")) if REASONS.is_file() else {}
    rows, listed, unexplained = [], [], 0
    names = sys.argv[1:] or list(MODULES)
    pool = ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), max_tasks_per_child=1
    )  # a module's tests see no other's
    for name, found in zip(names, pool.map(run, names), strict=True):
        alive = [words for words, is_dead in found if not is_dead]
        known = [words for words in alive if words in reasons.get(name, {})]
        unexplained += len(alive) - len(known)
        rows.append(
            f"| `{name}` | {len(found):,} | {len(found) - len(alive):,} | {len(known)} | {len(alive) - len(known)} |"
        )
        listed += [
            f"| `{name}` | {words.replace('|', '&#124;')} | {reasons[name][words]} |" for words in dict.fromkeys(known)
        ]
        print(rows[-1], flush=True)
    if len(sys.argv) == 1:
        page = "# Mutants\n\nGenerated by `python benchmarks/mutants.py`: code that makes numbers, changed on purpose in one spot at a time, and judged by\n"
        page += "the module's fast tests. A mutant survives where no test fails; each survivor has the reason why it changes no number.\n\n"
        page += (
            "| module | mutants | killed | survive, with a reason | survive, without |\n|---|---:|---:|---:|---:|\n"
            + "\n".join(rows)
        )
        page += "\n\n| module | change | why no number changes |\n|---|---|---|\n" + "\n".join(listed) + "\n"
        TARGET.write_text(page, encoding="utf-8")
    sys.exit(1 if unexplained else 0)


if __name__ == "__main__":
    main()

"""Change the code that makes numbers, one operator, constant or name at a time, and see whether a test fails: docs/mutants.md.

    python benchmarks/mutants.py [MODULE ...]

Each mutant lives in a process of its own, forked from a pytest that has collected the module's own fast tests: functions get the code of
the mutant, then the tests run until one fails. mutmut and cosmic-ray make more mutants, but start pytest anew for each: on the same busy
machine mutmut ran 10 of the 351 mutants of `mil/tiles/grid.py` a minute. A mutant that no test kills must stand in
`benchmarks/mutants.json`, with the reason why it changes no number written beside it; else the exit code is 1. After a new
test, `--again` tries only those that survived before; `--page` alone writes the page again from that file.
"""

import ast
import copy
import gc
import importlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEASURED = Path(__file__).with_suffix(".json")  # what the last runs found, and the reasons, which are written by hand
TARGET = ROOT / "docs" / "mutants.md"
FAST = [
    "-x",
    "-q",
    "--tb=native",
    "--assert=plain",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-p",
    "no:playwright",
    "-m",
    "not slow and not extended",
]
LIMIT_S = 30  # of computing; a mutant that waits, or does not come to its turn, has twenty times as long

# module: its functions (none: all), test files, pytest's -k
MODULES: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "mil.tiles.grid": ((), ("tests/tiles/test_grid.py",), ""),
    "mil.tissue": ((), ("tests/tissue/test_masks.py",), ""),
    "mil.tissue.masks": ((), ("tests/tissue/test_masks.py",), ""),
    "mil.tissue.unscanned": ((), ("tests/tissue/test_masks.py",), ""),
    "mil.bags.table": (
        ("deal_folds", "_deal", "_strata", "patients_needed"),
        ("tests/bags/test_bags.py",),
        "fold or dealt",
    ),
    "mil.training.protocol": ((), ("tests/training/test_protocol.py",), ""),
    "mil.statistics.delong": ((), ("tests/statistics/test_delong.py",), ""),
    "mil.statistics.folds": ((), ("tests/statistics/test_folds.py",), ""),
    "mil.strategies.aggregation": ((), ("tests/strategies/test_aggregation.py",), ""),
    "mil.training.optimisers": (("clip", "schedule"), ("tests/training/test_protocol.py",), ""),
    "mil.hospital.privacy": (
        ("clipped", "private_update", "patient_gradients", "steps_of"),
        ("tests/hospital/test_private_updates.py",),
        "",
    ),
    "mil.hdf5": ((), ("tests/core/test_hdf5.py",), ""),
    "mil.slides.scale": ((), ("tests/slides/test_scale.py",), ""),
    "mil.models.attention": ((), ("tests/models/test_models.py",), "attention and not 200000"),
    "mil.models.layers": (
        ("tanh", "masked_softmax"),
        ("tests/models/test_models.py",),
        "(attention or softmax or tanh) and not 200000",
    ),
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
COMMUTATIVE = {"min", "max", "minimum", "maximum"}


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
        if (
            len(node.args) == 2
            and name not in COMMUTATIVE
            and all(isinstance(one, ast.Name | ast.Attribute) for one in node.args)
        ):
            yield changed(args=node.args[::-1])


Found = tuple[tuple[tuple[str, int | None], ...], str, ast.AST, ast.AST]


def mutants(tree: ast.Module, wanted: tuple[str, ...]) -> Iterator[tuple[int, str, ast.Module]]:
    """(line, function and what was changed in it, the whole module) of every mutant of the wanted functions."""

    def walk(node: ast.AST, path: tuple[tuple[str, int | None], ...], function: str) -> Iterator[Found]:
        if isinstance(node, SKIPPED) or (isinstance(node, ast.keyword) and node.arg == "strict"):
            return  # zip's `strict` makes no number: it stops at lengths that never differ
        if function:
            for other in variants(node):
                yield path, function, node, other
        for name, value in ast.iter_fields(node):
            if name in {"annotation", "returns", "decorator_list"}:
                continue
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST):
                    is_new = isinstance(child, ast.FunctionDef) and (function or not wanted or child.name in wanted)
                    yield from walk(child, (*path, (name, index)), child.name if is_new else function)

    seen: Counter[str] = Counter()
    for path, function, node, other in walk(tree, (), ""):
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
        words = f"{function}: {before} -> {after}".replace("\n", " ")
        seen[words] += 1
        words += f" (no. {seen[words]})" if seen[words] > 1 else ""
        yield node.lineno, words, ast.fix_missing_locations(module)  # type: ignore[attr-defined]


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


class Campaign:
    """A plugin of pytest: in place of running the tests it forks a process for each mutant, in which they run until one fails."""

    def __init__(self, name: str, again: Collection[str] | None = None) -> None:
        self.name, self.is_child, self.again = name, False, again
        self.found: list[tuple[str, bool]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Every mutant; none at all first, with which the tests must pass. In a child the tests run (None: go on as usual)."""
        if session.testsfailed:
            return None
        module = importlib.import_module(self.name)
        tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
        wanted = MODULES[self.name][0]
        gc.collect()
        gc.freeze()  # children leave the collected tests' memory shared
        for line, words, mutant in ((0, "", tree), *mutants(tree, wanted)):
            if words and self.again is not None and words.split(" (no. ")[0] not in self.again:
                self.found.append((words, True))
                continue
            child = os.fork()
            if child == 0:
                self.is_child = True
                session.config.pluginmanager.unregister(name="terminalreporter")
                null = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(null, stream)
                signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
                signal.alarm(20 * LIMIT_S)
                put(module, compile(mutant, module.__file__ or "", "exec"))
                return None
            is_dead = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 1
            if not words and is_dead:
                raise pytest.UsageError(f"{self.name}: its tests fail without a mutant")
            if words:
                self.found.append((words, is_dead))
                if not is_dead:
                    print(f"    survives: {self.name} line {line}: {words}", flush=True)
        return True

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """A child ends with 1 where all tests passed."""
        if self.is_child:
            os._exit(1 if exitstatus == 0 else 0)


def run(name: str, again: Collection[str] | None = None) -> list[tuple[str, bool]]:
    """Every mutant of a module in words, and whether it was killed; those that do not stand in `again` were killed before."""
    os.chdir(ROOT)
    _, files, chosen = MODULES[name]
    campaign = Campaign(name, again)
    code = pytest.main(
        [*FAST, *(("-k", chosen) if chosen else ()), *(str(ROOT / file) for file in files)], plugins=[campaign]
    )
    if code not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED} or not campaign.found:
        raise RuntimeError(f"{name}: pytest ended with {code}")
    return campaign.found


def page(measured: dict[str, dict]) -> str:
    """docs/mutants.md."""
    text = (
        "# Mutants\n\nGenerated by `python benchmarks/mutants.py`: code that makes numbers, changed on purpose in one spot at a time, and "
        "judged by\nthe module's fast tests. A mutant survives where no test fails; each survivor has the reason why it changes no "
        "number.\n\n| module | mutants | killed | survive, with a reason | survive, without |\n|---|---:|---:|---:|---:|\n"
    )
    for name, found in measured.items():
        reasons = list(found["survivors"].values())
        text += f"| `{name}` | {found['mutants']:,} | {found['mutants'] - len(reasons):,} | {sum(map(bool, reasons))} | {reasons.count('')} |\n"
    text += "\n| module | function: change | why no number changes |\n|---|---|---|\n"
    for name, found in measured.items():
        for words, reason in found["survivors"].items():
            text += f"| `{name}` | `{words.replace('|', '&#124;')}` | {reason or 'open'} |\n"
    return text


def main() -> None:
    """Run the modules in a process each; what survives is printed and written, with the reasons that were given before."""

    def written() -> dict[str, dict]:
        return json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}

    measured = written()
    options = {one for one in sys.argv[1:] if one.startswith("--")}
    names = [name for name in sys.argv[1:] if name not in options] or ([] if "--page" in options else list(MODULES))
    for name in names:
        before = {words.split(" (no. ")[0] for words in measured.get(name, {}).get("survivors", {})}
        again = before if "--again" in options else None
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # a module's tests see no other's
            found = pool.submit(run, name, again).result()
        measured = written()  # another process may have measured another module meanwhile
        known = measured.get(name, {}).get("survivors", {})
        survivors = {words: known.get(words, "") for words, is_dead in found if not is_dead}
        measured[name] = {"mutants": len(found), "survivors": survivors}
        print(
            f"{name}: {len(found)} mutants, {len(survivors)} survive, {list(survivors.values()).count('')} without a reason",
            flush=True,
        )
        MEASURED.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    measured = {name: measured[name] for name in MODULES if name in measured}
    TARGET.write_text(page(measured), encoding="utf-8")
    sys.exit(1 if any("" in found["survivors"].values() for found in measured.values()) else 0)


if __name__ == "__main__":
    main()

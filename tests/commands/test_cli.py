"""The command line: instant help, and every fault one line, exit code 1 and nothing half-written."""

import ast
import json
import os
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from features_alone import write_trident
from typer.testing import CliRunner

from mil import __version__
from mil.cli import app
from mil.commands.examples import EXAMPLES
from mil.commands.options import scored_line
from mil.encoders.table import ENCODERS

COMMANDS = [
    "init", "demo", "check", "tile", "contact", "extract", "census", "bag", "train", "predict", "score", "compare", "localise",
    "plot", "report", "config", "baseline", "validate", "convert", "encoders", "server", "site", "ledger",
    "clinical",
]  # fmt: skip


def mil(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "mil.cli", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_every_command_is_listed_and_explained():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.output
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


HEAVY = {"torch", "pandas", "matplotlib", "snakemake", "sklearn", "scipy", "lifelines", "h5py", "numpy", "timm"}
LIGHT = {  # arguments -> what is printed
    "--help": "Slides to features",
    "-h": "Slides to features",
    "train -h": "Example: mil train",
    "encoders list": "efficientnet_lite0",
    "encoders list --json": '"weights_licence"',
    "encoders show uni": "ask at https://huggingface.co/MahmoodLab/UNI",
    "encoders show unni": "did you mean 'uni'?",
    "encoders fetch phicon": "did you mean 'phikon'?",
    "encoders check unni": "did you mean 'uni'?",
    "trian": "No such command",
    "convert stmp x y": "did you mean 'stamp'?",
    "convert clam x y --back": "known: stamp, trident",
    "convert clam none y": "none is not a folder",
    "check --spec {}": "slide sheet slides.csv does not exist",
    "check --deep none": "none/config.json does not exist",
    "check --inputs none": "none/config.json does not exist",
    "check --known none.csv": "give --inputs R before training",
    'check --spec {"shet":1}': "did you mean 'sheet'?",
    "tile none.csv --folder t --thumbnails t --out o": "table none.csv does not exist",
    "contact none.csv --tiles t --thumbnails t --out o": "table none.csv does not exist",
    'extract none.csv --tiles t --folder f --out o --spec {"nam":"uni"}': "did you mean 'name'?",
    "bag c.csv --slides none.yaml --out o --flow f": "none.yaml does not exist",
    "train none.csv --sites s --folder f --endpoint {}": "table none.csv does not exist",
    'train b.csv --sites s --folder f --endpoint {} --spec {"lr":1}': "key 'encoder' is missing",
    "predict run --bags none.csv --sites s --out o": "table none.csv does not exist",
    "score none.csv --experiment {} --out o": "error: --experiment: key 'encoder' is missing",
    "compare none --out o": "none/config.json does not exist",
    "baseline none --endpoint e --folder f": "none/config.json does not exist",
    "localise none --experiment e --out o": "none/config.json does not exist",
    "plot list": "F2a      pipeline_overview",
    "plot roc_by_sites": "did you mean 'roc_by_site'?",
    "plot F2a --results none": "none/config.json does not exist",
    "site check none.yaml": "none.yaml does not exist",
    "server status none.yaml run": "none.yaml does not exist",
    "ledger verify none": "ledger none does not exist",
    "report none --out o": "none/config.json does not exist",
    "clinical none.yaml": "config none.yaml does not exist",
    "config show none.yaml": "config none.yaml does not exist",
}


def test_help_static_tables_and_mistakes_import_nothing_heavy(tmp_path):
    """Each takes 0.3 s of CPU; torch or matplotlib would add 3 to 6."""
    code = f"""
import io, sys, contextlib
from mil.cli import main
for line in {list(LIGHT)!r}:
    sys.argv, said = ["mil", *line.split()], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main()
    print(repr((line, said.getvalue(), sorted({HEAVY!r} & set(sys.modules)))))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    seen = [ast.literal_eval(line) for line in result.stdout.splitlines()]
    assert len(seen) == len(LIGHT)
    for line, said, heavy in seen:
        assert LIGHT[line] in said, (line, said)
        assert not heavy, (line, heavy)
    assert list(tmp_path.iterdir()) == []


def test_the_list_of_encoders_fits_100_columns_and_json_has_them_all():
    printed = CliRunner().invoke(app, ["encoders", "list"]).output
    assert max(map(len, printed.splitlines())) <= 100
    rows = json.loads(CliRunner().invoke(app, ["encoders", "list", "--json"]).output)
    assert {row["name"] for row in rows} == set(ENCODERS)
    assert all(name in printed for name in ENCODERS)


def test_encoders_that_run_code_say_so_where_they_are_named(repository):
    listed = CliRunner().invoke(app, ["encoders", "list"]).output
    pages = [repository / name for name in ("docs/features.md", "docs/extend.md", "configs/default.yaml")]
    for text in (listed, *(page.read_text() for page in pages)):
        plain = " ".join(text.replace("#", " ").replace("*", "").split())
        assert "torchscript:FILE" in plain
        assert "run the code in that file" in plain


def commands_of(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_has_an_example_that_its_parser_accepts_and_a_page(repository):
    leaves = dict(commands_of(typer.main.get_command(app)))
    assert {" ".join(path) for path in leaves} == set(EXAMPLES)
    for path, command in leaves.items():
        assert command.epilog, path
        assert command.help, path
        example, page = command.epilog.split("\n\n")
        words = shlex.split(example.split("[bold]mil ")[1].removesuffix("[/bold]"))
        assert tuple(words[: len(path)]) == path
        with command.make_context(path[-1], words[len(path) :], resilient_parsing=True) as context:
            assert not context.args, example
            given = {name for name, value in context.params.items() if value not in (None, (), [])}
        assert {parameter.name for parameter in command.params if parameter.required} <= given, example
        text = (repository / page.removeprefix("Documentation: ")).read_text(encoding="utf-8")
        assert f"mil {' '.join(path)}" in " ".join(text.split()), f"{page} does not explain it"


def test_a_value_or_an_interval_that_does_not_exist_is_left_out_with_the_reason():
    row = SimpleNamespace(experiment="e", trained_on="a+b", site="c", value=0.671, low=0.5, high=0.8, method="DeLong")
    assert scored_line(row, "AUROC") == "e trained on a+b, c: AUROC 0.671 [0.500, 0.800] (DeLong)"
    row.low, row.high, row.method = np.nan, np.nan, "no interval: 34 pairs within folds; 40 needed"
    assert scored_line(row, "AUROC").endswith("AUROC 0.671 (no interval: 34 pairs within folds; 40 needed)")
    row.value, row.method = np.nan, "one class only"
    assert scored_line(row, "AUROC").endswith("AUROC none (one class only)")


def test_version():
    assert CliRunner().invoke(app, ["--version"]).output.strip() == f"mil {__version__}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "--spec", '{"sheet": "none.csv"}'], "slide sheet none.csv does not exist"),
        (["check", "--spec", '{"shet": "x"}'], "unknown key 'shet'; did you mean 'sheet'?"),
        (["check", "--spec", "none.yaml"], "config none.yaml does not exist"),
        (["tile", "none.csv", "--folder", "t", "--thumbnails", "t", "--out", "t.csv"], "table none.csv does not exist"),
        (["config", "show", "none.yaml"], "config none.yaml does not exist"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_1(tmp_path, arguments, said):
    process = mil(*arguments, cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert said in process.stderr
    assert process.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_a_log_that_cannot_be_written_are_one_line_each(tmp_path):
    """A limit on the size of files stands for the full disk: HDF5 tells of both in several lines."""
    write_trident(tmp_path / "theirs", "s1", np.random.default_rng(0).normal(size=(400, 64)))
    arguments = ["convert", "trident", "theirs", "ours", "--mpp", "0.25"]
    code = "import resource, sys; sys.dont_write_bytecode = True; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from mil.cli import main; main()"
    full = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    said = full.stderr.strip().splitlines()
    assert full.returncode != 0  # HDF5 complains before, and may crash at the end, where it cannot close its file
    assert said[-1].startswith("error: ours/s1.h5: cannot be written (")
    assert "); nothing was left there" in said[-1]
    assert list((tmp_path / "ours").iterdir()) == []
    (tmp_path / "file").write_text("")
    process = mil(*arguments, "--log", "file/convert.log", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (1, "error: file: File exists\n")


@pytest.mark.slow
def test_strict_check_of_a_corrupt_slide_names_it(tmp_path):
    (tmp_path / "broken.svs").write_bytes(b"not a slide")
    (tmp_path / "other.svs").write_bytes(b"not a slide")
    (tmp_path / "slides.csv").write_text("slide_id,patient_id,site,path\ns1,p1,A,broken.svs\ns2,p2,A,other.svs\n")
    (tmp_path / "patients.csv").write_text("patient_id,response\np1,1\n")
    spec = '{"sheet": "slides.csv", "patients": "patients.csv", "roles": {"A": "train"}}'
    flagged = mil("check", "--spec", spec, "--out", "out.csv", cwd=tmp_path)
    assert flagged.returncode == 1  # nothing usable is left
    assert "s1" in (tmp_path / "out.csv").read_text()
    assert "1 slides are not used: 1 patients have no row in the patient table, 'p2' first" in flagged.stderr
    strict = mil("check", "--spec", spec, "--strict", cwd=tmp_path)
    assert strict.returncode == 1
    last = strict.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 2 of 2 slides cannot be used; the first: slide s1 (broken.svs): ")


def test_the_log_gets_the_error_too(tmp_path):
    process = mil("check", "--spec", '{"sheet": "none.csv"}', "--log", "check.log", cwd=tmp_path)
    assert process.returncode == 1
    assert "error: slide sheet none.csv does not exist" in (tmp_path / "check.log").read_text()


def test_a_full_disk_behind_standard_output_is_one_line():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mil.cli", "licences"]
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_a_terminated_command_says_so_in_its_log_and_keeps_nothing_half_written(tmp_path):
    """Slurm's SIGTERM, sent while the log is open and a table is being written."""
    code = (
        "import os, signal, sys\nfrom mil import cli\nfrom mil.commands.options import reporter_of\nfrom mil.files import replacing\n"
        "def work():\n    reporter_of('work.log')\n    with replacing('table.csv') as partial:\n"
        "        partial.write_text('half')\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "cli.app = work\ncli.main()"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 143
    assert "error: terminated (SIGTERM): time limit" in (tmp_path / "work.log").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["work.log"]


@pytest.mark.parametrize(
    ("number", "line"), [(signal.SIGTERM, "error: terminated (SIGTERM)"), (signal.SIGINT, "interrupted;")]
)
@pytest.mark.parametrize("error", ["SystemError", "MilError", "OSError", "SystemExit", "Stopped"])
def test_a_signal_is_named_even_where_a_library_turns_it_into_another_error(error, number, line):
    """h5py, interrupted while it lists attributes, raises a SystemError in place of the handler's exception."""
    code = (
        "import os, signal\nfrom mil import cli\nfrom mil.errors import MilError, Stopped\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        f"def work():\n    try:\n        os.kill(os.getpid(), {number})\n    except BaseException:\n"
        f"        raise {error}('a result with an exception set')\n"
        "cli.app = work\ncli.main()"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 128 + number
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith(line)


LOSSES = {
    "a callback": "    import weakref\n    thing = type('Thing', (), {})()\n    seen = weakref.ref(thing, lambda _: kill())\n    del thing\n",
    "an error that is dealt with": "    try:\n        try:\n            kill()\n        except BaseException:\n            raise OSError('h5py')\n"
    "    except OSError:\n        pass\n",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_signal_whose_exception_is_lost_ends_the_command_all_the_same(loss, tmp_path):
    """Slurm's SIGTERM came while Python removed a weak reference: the exception was dropped and the job went on until SIGKILL."""
    code = (
        "import os, signal, sys, time\nfrom mil import cli\nfrom mil.files import replacing\n"
        "def kill():\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.01)\n"
        f"def work():\n{LOSSES[loss]}    with replacing('table.csv') as partial:\n"
        "        partial.write_text('half')\n        time.sleep(20)\n    print('ended')\n"
        "cli.app = work\ncli.main()"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 143
    assert process.stderr.startswith("error: terminated (SIGTERM)")
    assert process.stderr.count("\n") == 1
    assert not process.stdout
    assert not list(tmp_path.iterdir())


def test_a_second_signal_does_not_end_the_cleaning_up_after_the_first(tmp_path):
    """Slurm and Snakemake both pass SIGTERM on."""
    code = (
        "import os, signal, time\nfrom mil import cli\ndef kill():\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.01)\n"
        "def work():\n    try:\n        kill()\n    finally:\n        kill()\n        time.sleep(1)\n        print('cleaned')\n"
        "cli.app = work\ncli.main()"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 143
    assert process.stdout == "cleaned\n"


def test_a_signal_that_comes_after_the_command_prints_no_traceback():
    """Python ends in some tenths of a second, in which the handler of the command would raise where nothing catches it."""
    code = (
        "import atexit, os, signal\nfrom mil import cli\natexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "cli.app = lambda: None\ncli.main()"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGTERM
    assert not process.stderr

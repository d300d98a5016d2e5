"""Files are complete or absent, whatever stops the writing."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from mil.errors import MilError
from mil.files import MACHINE, check_id, check_name, file_name, replacing, sha256_of, write_bytes, write_text

WRITER = """
import sys, time
from mil.files import replacing
with replacing(sys.argv[1]) as partial:
    partial.write_text("half")
    print(partial, flush=True)
    time.sleep(600)
"""


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text(f"half of the new, {1 / 0}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_s_file_goes_with_the_next_write_and_a_live_one_s_stays(tmp_path):
    path = tmp_path / "x.txt"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, env=environment) as writer:
        try:
            assert writer.stdout is not None
            partial = Path(writer.stdout.readline().decode().strip())
            write_text(path, "new")
            assert partial.read_text() == "half"
        finally:
            writer.kill()
    write_text(tmp_path / "y.txt", "another file")
    assert partial.exists()
    write_text(path, "newer")
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "y.txt"]


def test_another_machine_s_writer_cannot_be_asked_and_its_file_stays(tmp_path):
    elsewhere = tmp_path / f".x.txt.not-{MACHINE}.4194305.partial"
    here = tmp_path / f".x.txt.{MACHINE}.4194305.partial"  # more than Linux ever gives
    for path in (elsewhere, here):
        path.write_text("half")
    write_text(tmp_path / "x.txt", "new")
    assert sorted(tmp_path.iterdir()) == [elsewhere, tmp_path / "x.txt"]


def test_a_private_file_is_never_anybody_else_s_to_read(tmp_path):
    write_bytes(tmp_path / "secret", b"key", private=True)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_file_in_the_folders_place_is_said(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(MilError, match="cannot be written"):
        write_text(tmp_path / "folder/x.txt", "text")


def test_a_full_disk_is_said_and_leaves_nothing():
    with pytest.raises(MilError, match="cannot be written"), replacing("/dev/full/x") as partial:
        partial.write_text("text")


def test_what_hdf5_says_of_a_full_disk_is_one_line(tmp_path):
    text = "Can't close file (file write failed: time = Thu\n, filename = 'x', errno = 28, error message = 'No space left on device')"
    with pytest.raises(MilError, match=r"cannot be written \(No space left on device\)"), replacing(tmp_path / "x"):
        raise OSError(text)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", "-rf", ".hidden", "a b", "a\n", "ä", "x" * 129, "nul\0"])
def test_names_that_could_escape_are_refused(name):
    with pytest.raises(MilError, match="cannot be a file name"):
        check_name("slide_id", name, "sheet line 2")


@pytest.mark.parametrize(
    "name", ["a", "S 12 (a)", "50%", "a%20b", "[x]{y}", "ä*?", "$(touch x)", "CON~1", "=1", "a.b-c_d"]
)
def test_a_slide_id_has_one_file_name_and_comes_back_from_it(name, tmp_path):
    assert check_id("slide_id", name, "here") == name
    assert re.fullmatch(r"[A-Za-z0-9._~%-]+", file_name(name))
    assert unquote(file_name(name)) == name
    (tmp_path / file_name(name)).write_text(name)


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/b", "a\\b", "a;b", "", "-rf", ".hidden", " a", "a\n", "x" * 129, "ä" * 50, "nul\0"]
)
def test_ids_that_could_escape_are_refused(name):
    with pytest.raises(MilError, match="cannot be a file name"):
        check_id("slide_id", name, "sheet line 2")


def test_good_names_pass(tmp_path):
    assert check_name("slide_id", "TCGA-A1-A0SB-01Z.v2", "here") == "TCGA-A1-A0SB-01Z.v2"
    write_text(tmp_path / "x", "abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

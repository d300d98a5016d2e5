"""Files are complete or absent, whatever stops the writing."""

import pytest

from mil.errors import MilError
from mil.files import check_name, replacing, sha256_of, write_text


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text(f"half of the new, {1 / 0}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_folders_place_is_said(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(MilError, match="cannot be written"):
        write_text(tmp_path / "folder/x.txt", "text")


def test_a_full_disk_is_said_and_leaves_nothing():
    with pytest.raises(MilError, match="cannot be written"), replacing("/dev/full/x") as partial:
        partial.write_text("text")


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", "-rf", ".hidden", "a b", "a\n", "ä", "x" * 129, "nul\0"])
def test_names_that_could_escape_are_refused(name):
    with pytest.raises(MilError, match="cannot be a file name"):
        check_name("slide_id", name, "sheet line 2")


def test_good_names_pass(tmp_path):
    assert check_name("slide_id", "TCGA-A1-A0SB-01Z.v2", "here") == "TCGA-A1-A0SB-01Z.v2"
    write_text(tmp_path / "x", "abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

"""What a workflow says last: the line of every job that failed, and of no other."""

import os
import time

from mil.workflow.failures import failures


def test_failures_are_the_last_lines_of_this_run_s_logs(tmp_path):
    started = time.time() - 60
    for name, lines in {
        "train/a.log": ["reading", "error: width is 32, but 16"],
        "train/b.log": ["error: is not the last line", "went on"],
        "score/c.log": ["done"],
        "score/old.log": ["error: of yesterday"],
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(f"12:00:00 {line}\n" for line in lines))
    (tmp_path / "census.log").write_text("error: plain, as a shell redirects it\n")
    (tmp_path / "empty.log").touch()
    os.utime(tmp_path / "score/old.log", (started - 1, started - 1))
    assert failures(tmp_path, started) == [
        f"{tmp_path}/census.log: error: plain, as a shell redirects it",
        f"{tmp_path}/train/a.log: error: width is 32, but 16",
    ]
    assert failures(tmp_path / "nowhere", started) == []

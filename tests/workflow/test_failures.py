"""What a workflow says last: the line of every job that failed, and of no other."""

import os
import time

import pytest

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


ENDED = """[Fri Nov 27 07:12:24 2026]
Error in rule train:
    message: SLURM-job '{number}' failed, SLURM status is: '{state}'. Detailed failure reason unavailable.
    jobid: {job}
    output: results/c/runs/a/weights.safetensors
    log: {log}, {slurm} (check log file(s) for error details)
    shell:
        mil train --log {log}
        (command exited with non-zero exit code)
    external_jobid: {number}
"""


@pytest.mark.parametrize(
    ("state", "slurmstepd", "cause"),
    [
        ("TIMEOUT", "", "time: it reached its time limit"),
        ("CANCELLED", "slurmstepd: error: *** JOB 5 ON a CANCELLED AT 2026 DUE TO TIME LIMIT ***", "time: it reached"),
        ("OUT_OF_MEMORY", "", "memory: it took more"),
        (
            "FAILED",
            "slurmstepd: error: StepId=5.0 exceeded memory limit (21 > 10), being killed",
            "memory: it took more",
        ),
        ("FAILED", "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0.", "memory: it took more"),
        ("NODE_FAIL", "", "node: the node failed"),
        ("PREEMPTED", "", "preempted"),
        ("CANCELLED", "slurmstepd: error: *** JOB 5 ON a CANCELLED AT 2026 ***", "cancelled, as by scancel"),
    ],
)
def test_what_ended_a_slurm_job_is_named(tmp_path, state, slurmstepd, cause):
    log, slurm, run = tmp_path / "logs/train/a.log", tmp_path / "5.log", tmp_path / "run.log"
    log.parent.mkdir(parents=True)
    log.write_text("12:00:00 error: terminated (SIGTERM): time limit, cancelled, or the node was taken away\n")
    slurm.write_text(f"rule train:\n{slurmstepd}\n")
    said = ENDED.format(state=state, number=5, job=7, log=log, slurm=slurm)
    run.write_text(said)
    assert len(failures(tmp_path / "logs", 0, [run])) == 1
    assert failures(tmp_path / "logs", 0, [run])[0].startswith(f"{log}: error: {cause}")
    assert failures(tmp_path / "logs", 0, [run])[0].endswith("(Slurm job 5)")
    log.write_text("12:00:00 done\n")
    run.write_text(said + "Trying to restart job 7.\n[Fri]\nFinished jobid: 7 (Rule: train)\n")
    assert failures(tmp_path / "logs", 0, [run]) == []


def test_an_error_of_mil_itself_is_kept_as_it_was_said(tmp_path):
    log, run = tmp_path / "logs/a.log", tmp_path / "run.log"
    log.parent.mkdir()
    log.write_text("12:00:00 error: width is 32, but 16\n")
    run.write_text(ENDED.format(state="FAILED", number=5, job=7, log=log, slurm=tmp_path / "none.log"))
    assert failures(tmp_path / "logs", 0, [run]) == [f"{log}: error: width is 32, but 16"]

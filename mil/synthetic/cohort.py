"""A seed -> the demo cohort on disk: slides, sheets, truth and the list of its flaws."""

from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from mil.errors import MilError
from mil.machine import cores, keep_memory
from mil.progress import Reporter, quiet
from mil.synthetic.flaws import flaws_by_slide, flaws_table, slide_ids
from mil.synthetic.patients import Patient, clinical_table, draw_patients
from mil.synthetic.sites import SITES
from mil.synthetic.slides import SlideTask, make_slide
from mil.tables import write_table

MOST_PROCESSES = 8  # a slide in the making takes about half a gigabyte


def make_cohort(folder: Path, seed: int = 0, patients_per_site: int = 24, reporter: Reporter | None = None) -> None:
    """Write the cohort to `folder`: the slides and their truth first, `patients.csv`, `flaws.csv` and `slides.csv` last.

    The same seed gives the same bytes, whatever the number of processes. A patient's tissue depends on the seed and the
    patient's name only. Raises `MilError` where a site would have fewer than two patients or the folder cannot be written.
    """
    if patients_per_site < 2:
        raise MilError(f"--patients {patients_per_site}: a demo cohort has 2 or more patients per site")
    reporter = reporter or quiet()
    folder = Path(folder)
    patients = [patient for site in SITES for patient in draw_patients(seed, site, patients_per_site)]
    flaws = flaws_by_slide(patients)
    tasks = [
        SlideTask(
            seed=seed,
            patient=patient,
            slide_id=slide_id,
            flaw=flaws[slide_id].name if slide_id in flaws else None,
            path=folder / patient.site.name / f"{slide_id}{patient.site.scanner.suffix}",
            truth=folder / "truth" / f"{slide_id}.png",
        )
        for patient in patients
        for slide_id in slide_ids(patient, flaws)
    ]
    _make_folders(folder, tasks)
    _make_slides(tasks, reporter)
    unlabelled = {task.patient.patient_id for task in tasks if task.flaw == "no_label"}
    write_table(_patients_table(seed, patients, unlabelled), folder / "patients.csv")
    write_table(flaws_table(flaws), folder / "flaws.csv")
    write_table(_slides_table(tasks, folder), folder / "slides.csv")


def _make_folders(folder: Path, tasks: list[SlideTask]) -> None:
    """Before any slide is made, so that a folder that cannot be is known at once."""
    for path in dict.fromkeys([folder, *(task.path.parent for task in tasks), folder / "truth"]):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MilError(f"folder {path} cannot be made ({error.strerror}); give another folder") from error


def _make_slides(tasks: list[SlideTask], reporter: Reporter) -> None:
    """Make the slides, several at once."""
    processes = min(cores(None), MOST_PROCESSES, len(tasks))
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=keep_memory)
    with pool, reporter.steps("demo cohort", len(tasks), "slides") as steps:
        try:
            for future in as_completed([pool.submit(make_slide, task) for task in tasks]):
                future.result()
                steps.done()
        except BrokenProcessPool as error:
            raise MilError(
                f"a process that made slides was ended from outside after {steps.count} of {len(tasks)} slides, "
                "perhaps for want of memory; run again with some 1 GB free a core"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _patients_table(seed: int, patients: list[Patient], unlabelled: set[str]) -> pd.DataFrame:
    """The clinical table, with the response blank where it is unknown."""
    table = clinical_table(seed, patients)
    table["response"] = [
        "" if patient_id in unlabelled else str(response)
        for patient_id, response in zip(table["patient_id"], table["response"], strict=True)
    ]
    return table


def _slides_table(tasks: list[SlideTask], folder: Path) -> pd.DataFrame:
    """The slide sheet; the mpp is left to the files wherever they have one."""
    return pd.DataFrame(
        [
            {
                "slide_id": task.slide_id,
                "patient_id": task.patient.patient_id,
                "site": task.patient.site.name,
                "path": task.path.relative_to(folder).as_posix(),
                "mpp": task.patient.site.scanner.mpp if task.flaw == "mpp_in_sheet" else None,
            }
            for task in tasks
        ]
    )

"""A federation without a network: the same server and the same sites, asked one after the other in one process.

The reference for every engine that carries the messages: after each round the global weights' SHA-256 must be equal.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from mil.errors import MilError
from mil.hospital.server import Server
from mil.hospital.site import Site


def run(
    server: Server, sites: Mapping[str, Site], after: Callable[[Server], None] | None = None, files: Path | None = None
) -> None:
    """Ask until the run is done; a site that refuses is silent with its reason. `after` is called after every question.

    `files`: a folder for answers, where messages are files, as large ones are.
    """
    while server.kind != "done":
        question = server.question_file() if files else server.question()
        answers, silent = {}, {}
        for name in server.asked:
            try:
                if files:
                    sites[name].answer_file(question, files / name)
                    answers[name] = files / name
                else:
                    answers[name] = sites[name].answer(question)
            except MilError as error:
                silent[name] = f"refused: {getattr(error, 'code', 'other')}"
        server.receive(answers, silent)
        if after is not None:
            after(server)

"""Snakemake that asks Slurm for its jobs every 2 seconds. Its plugin waits 10 seconds longer each time that no job has ended, up to 180.

Takes the command line of `snakemake`. The jobs themselves call `python -m snakemake`, as ever.
"""

import asyncio

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

SECONDS = 2


async def _sleep(_: RemoteExecutor) -> None:
    await asyncio.sleep(SECONDS)


if __name__ == "__main__":
    RemoteExecutor.sleep = _sleep  # type: ignore[method-assign]
    main()

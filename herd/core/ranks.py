"""Which of the processes this is that torchrun, Slurm or Ray started for one command; alone, the first of one."""

import os


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))

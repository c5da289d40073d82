"""One model on many ranks: see `apply`."""

from herd.model.parallel.apply import ALONE, Parallel, local
from herd.model.parallel.mesh import start, stop

__all__ = ["ALONE", "Parallel", "local", "start", "stop"]

"""`herd run`: the stages of a recipe, each in a process of its own."""

import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from herd import __version__
from herd.commands.stages import REPORT, STAGES, NoSettings
from herd.core.child import run_in_child
from herd.core.console import exit_code, logged_to, traceback_log
from herd.core.files import partial as work_of
from herd.stages.recipe import Node, StageKind, load_recipe, run_recipe, run_stage
from herd.stages.unfinished import Unfinished, how_unfinished, telling_what_is_kept


def run(recipe: str, /, *, out: Path | None = None, resume_with_changes: bool = False, restart: bool = False) -> None:
    """Raise a herd: all stages of a recipe; those that stand are reused.

    Args:
        recipe: A recipe's name, or the path of a TOML file.
        out: Folder of the run, runs/RECIPE if not given.
        resume_with_changes: Go on with an unfinished stage though its settings differ; herd.json records the changes.
        restart: Move unfinished stages aside and begin them anew.
    """
    nodes = load_recipe(recipe, STAGES)  # a mistake in it is told before anything is written
    unfinished = how_unfinished(resume_with_changes=resume_with_changes, restart=restart)
    folder = out or Path("runs") / Path(recipe).stem
    folder.mkdir(parents=True, exist_ok=True)
    traceback_log.set(folder / "run.log")
    start = time.monotonic()
    with logged_to(folder / "run.log", f"herd {__version__}: run {recipe}"):
        nodes["report"] = Node(kind=REPORT, config=NoSettings(), parents={name: name for name in nodes})
        run_recipe(nodes, folder, do=partial(run_apart, unfinished))
        print(f"wrote {folder} in {time.monotonic() - start:.0f} s")


def run_apart(unfinished: Unfinished, kind: StageKind, config: Any, parents: Mapping[str, Path], out: Path) -> None:
    """Run one stage in a process of its own, so that none inherits the memory of those before it."""
    with telling_what_is_kept(work_of(out)):
        code = run_in_child(kind.name, stage_of_run, kind, config, parents, out, unfinished)
    if code:
        sys.exit(code)  # the child has told why


def stage_of_run(kind: StageKind, config: Any, parents: Mapping[str, Path], out: Path, unfinished: Unfinished) -> int:
    """What the child does; gives its exit code."""
    log = out.parent / "run.log"
    traceback_log.set(log)

    def work() -> None:
        with logged_to(log):
            run_stage(kind, config, parents, out, unfinished)

    return exit_code(work, f"stage {kind.name}")

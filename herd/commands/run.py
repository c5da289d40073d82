"""`herd run`: the stages of a recipe, each in a process of its own. The settings of its tables are options too."""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from herd import __version__
from herd.commands.command import Command, set_device
from herd.commands.own import from_paths, starter_or, with_starter
from herd.commands.single import Fields, device_option, unfinished_options
from herd.commands.stages import STAGES
from herd.config import DataConfig
from herd.core.child import run_in_child
from herd.core.console import exit_code, log_to, traceback_log
from herd.core.files import work_folder
from herd.errors import HerdError
from herd.stages.recipe import Node, StageKind, load_recipe, stages_to_report
from herd.stages.runner import run_recipe, run_stage
from herd.stages.unfinished import Unfinished, report_what_is_kept, unfinished_mode

REPORT = "report"
"""The stage that ends every run, unless the recipe has a table of that name."""


def run_usage(args: Sequence[str]) -> Any:
    """The usage of `herd run`: of a recipe that is named first, each table's fields are options, `--TABLE.FIELD`."""
    from tyro.conf import Positional, arg

    about = (
        "A recipe's name, or the path of a TOML file. Each setting of its tables is an option behind it: --TABLE.KEY."
    )
    fields: Fields = [("recipe", Positional[Annotated[str, arg(help=about)]])]
    about = "Folder of the run, runs/RECIPE if not given."
    fields.append(("out", Annotated[Path | None, arg(help=about)], None))
    about = "Files, folders or patterns of yours for the recipe's data: what each holds is found by looking."
    fields.append(("paths", Annotated[tuple[str, ...], arg(name="from", help=about)], ()))
    fields += [*unfinished_options(), device_option()]
    nodes = load_recipe(args[0], STAGES) if args and not args[0].startswith("-") else {}
    for number, (name, node) in enumerate(nodes.items()):
        if not node.kind.reads_run:
            fields.append((f"table_{number}", Annotated[type(node.config), arg(name=name)], node.config))
    return dataclasses.make_dataclass("Usage", fields, kw_only=True, namespace={"nodes": nodes})


def run(usage: Any) -> None:
    """Run a parsed usage of `run_usage`."""
    nodes: dict[str, Node] = usage.nodes or load_recipe(usage.recipe, STAGES)  # an option came before the recipe
    for number, (name, node) in enumerate(nodes.items()):
        nodes[name] = dataclasses.replace(node, config=getattr(usage, f"table_{number}", node.config))
    nodes = with_own_files(nodes, usage.paths)
    if REPORT not in nodes:
        kind = STAGES[REPORT]
        nodes[REPORT] = Node(kind=kind, config=kind.config()(), parents=stages_to_report(nodes))
    unfinished = unfinished_mode(resume_with_changes=usage.resume_with_changes, restart=usage.restart)
    set_device(usage.device)
    folder = usage.out or Path("runs") / Path(usage.recipe).stem
    folder.mkdir(parents=True, exist_ok=True)
    traceback_log.set(folder / "run.log")
    start = time.monotonic()
    with log_to(folder / "run.log", f"herd {__version__}: run {usage.recipe}"):
        run_recipe(nodes, folder, do=partial(run_apart, unfinished))
        print(f"wrote {folder} in {time.monotonic() - start:.0f} s")


def with_own_files(nodes: dict[str, Node], paths: Sequence[str]) -> dict[str, Node]:
    """The stages with the user's files in their data, and with the starter model where it is asked for by name."""
    data = [name for name, node in nodes.items() if isinstance(node.config, DataConfig)]
    if paths and len(data) != 1:
        raise HerdError(f"--from gives files to the recipe's [data], and it has {len(data) or 'none'} of them")
    made = {}
    for name, node in nodes.items():
        config = from_paths(node.config, paths) if paths and name in data else node.config
        parents = {role: of if isinstance(of, str) else starter_or(of) for role, of in node.parents.items()}
        made[name] = dataclasses.replace(node, config=with_starter(node.kind, config), parents=parents)
    return made


def run_apart(unfinished: Unfinished, kind: StageKind, config: Any, parents: Mapping[str, Path], out: Path) -> None:
    """Run one stage in a process of its own, so that none inherits the memory of those before it."""
    with report_what_is_kept(work_folder(out)):
        code = run_in_child(out.name, stage_of_run, kind, config, parents, out, unfinished)
    if code:
        sys.exit(code)  # the child has printed why


def stage_of_run(kind: StageKind, config: Any, parents: Mapping[str, Path], out: Path, unfinished: Unfinished) -> int:
    """What the child does; gives its exit code."""
    log = out.parent / "run.log"
    traceback_log.set(log)

    def work() -> None:
        with log_to(log):
            run_stage(kind, config, parents, out, unfinished)

    return exit_code(work, f"stage {out.name}")


RUN = Command(
    summary="Run all stages of a recipe; finished ones are reused",
    example="herd run tiny --pretrain.num-tokens 8M --out runs/longer",
    function=run,
    usage=run_usage,
    computes=True,
)

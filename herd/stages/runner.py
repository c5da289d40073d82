"""Runs the stages of a recipe, or one stage: what is finished as wanted is reused, what is unfinished is resumed.

A stage whose folder was made with the same config from the same parents is reused. Otherwise it runs again, and so do
the stages after it, as far as what they read has changed; the folder that was there is kept under another name. That
the code has changed is printed and no reason to run again: most commits change nothing of what a stage writes, and
hours of training would go with each. Imports no torch.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from herd.core.files import lock_folder, work_folder
from herd.core.lineage import code_version, made_by, read_lineage
from herd.core.ranks import rank
from herd.errors import HerdError
from herd.stages.recipe import Node, StageKind, unused_stages
from herd.stages.unfinished import (
    Unfinished,
    changes_since,
    describe,
    move_aside,
    prepare_work,
    put_in_place,
    remove_if_empty,
    report_what_is_kept,
    request,
)


def run_stage(
    kind: StageKind, config: Any, parents: Mapping[str, Path | None], out: Path, unfinished: Unfinished = "resume"
) -> Path:
    """Run one stage; parents are None that it goes without. It resumes its unfinished work if the settings are the
    same; else see `unfinished`."""
    if rank() > 0:  # what is done once is done by the first rank, before it joins the others
        return kind.function(config, *parents.values(), out)
    if out.exists() and not (out / "herd.json").exists():
        raise HerdError(f"{out} is there and no folder of Herd's: move it away, or give another --out")
    read = {role: folder for role, folder in parents.items() if folder is not None}
    wanted = request(config, {**read, **kind.inputs(config)})  # a missing parent is reported before anything is written
    if unfinished == "restart":
        move_aside(out)
    work = work_folder(out)
    with lock_folder(work), report_what_is_kept(work):
        prepare_work(out, config, wanted, unfinished)
        try:
            kind.function(config, *parents.values(), out)
        except HerdError:
            remove_if_empty(work)
            raise
    return out


def run_unless_done(
    name: str, kind: StageKind, config: Any, parents: Mapping[str, Path], out: Path, do: Callable[..., object]
) -> bool:
    """Have `do` run a stage, unless `out` was made with the same config from the same parents and files; whether it
    was."""
    put_in_place(out)
    if not (out / "herd.json").exists():
        print(f"{name} begins")
    elif differ := changes_since(out, config, {**parents, **kind.inputs(config)}):
        print(f"{name} begins again: {describe(differ)}")
    else:
        return True
    do(kind, config, parents, out)
    return False


def run_recipe(nodes: Mapping[str, Node], run: Path, *, do: Callable[..., object] = run_stage) -> None:
    """Run the stages in order into `run/STAGE`; those that are finished as wanted are reused.

    `do` takes what `run_stage` takes and has it done elsewhere.
    """
    for name, node in nodes.items():
        read = {role: nodes[of].config for role, of in node.parents.items() if isinstance(of, str) and of in nodes}
        try:
            node.kind.check(node.config, read)
        except HerdError as error:
            raise HerdError(f"[{name}] {error}") from None
    for line in unused_stages(nodes):
        print(line)
    now, width = code_version(), max(9, *map(len, nodes))
    for name, node in nodes.items():
        parents = {role: run / of if isinstance(of, str) else of for role, of in node.parents.items()}
        out, config = run / name, node.config_in(run)
        reused = run_unless_done(f"{name:<{width}}", node.kind, config, parents, out, do)
        lineage = read_lineage(out)
        print(f"{name:<{width}} {'reused' if reused else 'done'} ({lineage['time_s']:.0f} s)", end="")
        if reused and made_by(lineage) != now:
            print(f", made by herd {made_by(lineage)}, this is {now}: remove {out} to make it again", end="")
        print()

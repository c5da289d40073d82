"""The command line: parsed before torch is imported; herd/commands/ has the table of commands.

Whatever goes wrong is told in one line on stderr. The traceback of a bug goes to a file: `run.log` in a run's folder,
`OUT.log` beside the folder that a single stage writes, else `logs/herd.log` in the cache.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from herd import __version__
from herd.commands import COMMANDS
from herd.commands.stages import STAGES
from herd.core.boards import VARIABLE, asked_for
from herd.core.child import INTERRUPTED
from herd.core.console import exit_code, traceback_log
from herd.core.errors import HerdError, Misunderstood, unknown
from herd.core.numbers import whole_number
from herd.core.ranks import rank, world
from herd.stages.recipe import StageKind, load_recipe, run_stage
from herd.stages.unfinished import changes_since, how_unfinished, put_in_place

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry


def entry() -> None:
    """The program `herd`."""
    args = sys.argv[1:]
    if any(name in COMMANDS and COMMANDS[name].computes for name in (" ".join(args[:2]), " ".join(args[:1]))):
        tune_allocator()
    # Of several ranks the first tells results; what goes wrong is told by whom it befalls.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        code = main(args)
        if code == INTERRUPTED:  # at once: threads that write are not waited for
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        sys.exit(code)


def main(args: Sequence[str]) -> int:
    """Run one command and give its exit code."""
    traceback_log.set(None)
    return exit_code(lambda: do_command(args), f"herd {' '.join(args)}")


def do_command(args: Sequence[str]) -> None:
    if not args or args[0] in {"-h", "--help"}:
        print(overview(COMMANDS))
    elif args[1:] in (["-h"], ["--help"]) and (family := family_of(args[0])):
        print(overview(family))
    elif args[0] == "--version":
        print(f"herd {__version__}")
    else:
        name, rest = find(args)
        call(name, rest)


def overview(names: Iterable[str]) -> str:
    lines = [f"  {name:<14} {COMMANDS[name].summary}" for name in names]
    last = "herd COMMAND --help explains each option, with an example. Whole numbers may be written 8192, 8K or 10M."
    return "\n".join(["usage: herd COMMAND [OPTIONS]", "", *lines, "", last])


def family_of(word: str) -> list[str]:
    """The commands of two words that begin with `word`."""
    return [name for name in COMMANDS if name.startswith(f"{word} ")]


def find(args: Sequence[str]) -> tuple[str, list[str]]:
    """The command that `args` begin with, of two words or one, and what follows it."""
    for words in (2, 1):
        if (name := " ".join(args[:words])) in COMMANDS:
            return name, list(args[words:])
    family = family_of(args[0])
    raise Misunderstood(unknown("command", " ".join(args[: 2 if family else 1]), family or COMMANDS))


def call(name: str, args: list[str]) -> None:
    """Parse what follows the command's name, and do it."""
    import tyro

    refuse_repeated(args)
    command, registry = COMMANDS[name], number_rules()
    about = f"{command.summary}.\n\nExample: {command.example}"
    if not isinstance(command.does, StageKind):
        # A parameter that is a config gives each of its fields as an option of its own.
        flat = (tyro.conf.OmitArgPrefixes,)
        tyro.cli(command.does, prog=f"herd {name}", description=about, args=args, registry=registry, config=flat)
        return
    usage = stage_usage(command.does, args)
    usage = tyro.cli(usage, prog=f"herd {name}", description=about, args=args, registry=registry)
    if world() > 1 and "parallel" not in {field.name for field in dataclasses.fields(usage.config)}:
        raise HerdError(f"herd {name} works in one process, {world()} were started: say it without torchrun")
    out: Path = usage.out
    parents = {role: getattr(usage, role) for role in command.does.reads}
    if rank() == 0 and put_in_place(out) and not changes_since(out, usage.config, parents):
        print(f"wrote {out}")  # all but its name was done when it was killed
        return
    if out.exists():
        raise HerdError(f"{out} is there already: give another --out, or remove it first")
    unfinished = how_unfinished(resume_with_changes=usage.resume_with_changes, restart=usage.restart)
    os.environ[VARIABLE] = usage.track
    asked_for()  # a mistake in it is told before anything is written
    out.parent.mkdir(parents=True, exist_ok=True)
    traceback_log.set(out.with_name(out.name + ".log"))
    run_stage(command.does, usage.config, parents, out, unfinished)
    print(f"wrote {out}")


def refuse_repeated(args: Sequence[str]) -> None:
    """Of an option given twice the parser would drop the first in silence."""
    seen = [word.partition("=")[0].replace("_", "-") for word in args if word.startswith("--")]
    if twice := [option for option in seen if seen.count(option) > 1]:
        raise Misunderstood(f"{twice[0]} is given twice: give it once, with all its values behind it")


def number_rules() -> "ConstructorRegistry":
    """How every option that is a whole number is read: as `whole_number` does, 8K included."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: whole_number(words[0]),
            is_instance=lambda value: type(value) is int,
            str_from_instance=lambda value: [str(value)],
        )

    registry.primitive_rule(rule)
    return registry


def stage_usage(stage: StageKind, args: list[str]) -> Any:
    """The usage of a stage's command: its parents, --out, --recipe, and each field of its config."""
    from tyro.conf import Positional, arg

    # What the recipe says are the defaults that --help shows, so it is read ahead.
    ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    ahead.add_argument("--recipe", default="")
    recipe = ahead.parse_known_args(args)[0].recipe
    nodes = load_recipe(recipe, STAGES) if recipe else {}
    config = nodes[stage.name].config if stage.name in nodes else stage.config()()
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for role in stage.reads:
        kind = Annotated[Path, arg(help=f"Folder with the {role}.")]
        fields.append((role, Positional[kind] if role == "model" else kind))
    fields.append(("out", Annotated[Path, arg(help="Folder to write.")]))
    about = "Recipe whose table gives the defaults below."
    fields.append(("recipe", Annotated[str, arg(help=about, metavar="RECIPE")], recipe))
    about = "Show metrics elsewhere too: tensorboard, trackio, or both with a comma."
    fields.append(("track", Annotated[str, arg(help=about, metavar="BOARDS")], os.environ.get(VARIABLE, "")))
    about = "Go on with unfinished work though settings differ; herd.json records what changed at which step."
    fields.append(("resume_with_changes", Annotated[bool, arg(help=about)], False))
    about = "Move unfinished work aside and begin anew."
    fields.append(("restart", Annotated[bool, arg(help=about)], False))
    fields.append(("config", Annotated[type(config), arg(name="")], config))
    return dataclasses.make_dataclass("Usage", fields, kw_only=True)


def tune_allocator() -> None:
    """Start this program again under glibc's allocator set to keep large blocks, as fresh ones fault page by page, and
    to ask for huge pages: matrices wider than a page else miss the table of pages at every row.

    Training is up to a third faster on a CPU. The allocator reads these variables at its start only. Any of them
    already set is the user's choice, or the sign that this was done.
    """
    settings = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "1000000000"}
    settings["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    glibc = sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names
    if glibc and not settings.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | settings)

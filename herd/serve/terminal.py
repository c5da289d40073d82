"""`herd chat`: a conversation on the terminal, or over a pipe when there is none.

On a terminal lines are edited with readline, whose history is kept in the cache folder. Over a pipe every line of
standard input is a turn and only answers go to standard output; what went wrong goes to standard error.
The conversation is kept as messages and lives as long as the program.
"""

import asyncio
import dataclasses
import io
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.core.errors import HerdError, unknown
from herd.core.files import cache_folder
from herd.data.image import read_picture
from herd.data.video import read_video, video_part
from herd.engine.answer import Piece
from herd.engine.sampler import SamplingParams
from herd.serve.session import answering, fitted

if TYPE_CHECKING:
    from herd.engine.load import Model

COMMANDS = {
    "/image": "/image PATH   attach a picture to the next message (several are welcome)",
    "/video": "/video PATH   attach frames of a video, with their times",
    "/reset": "/reset        begin a new conversation",
    "/help": "/help         show this",
    "/quit": "/quit         leave (or Ctrl-D)",
}
HELP = "\n".join(
    [
        *COMMANDS.values(),
        "Ctrl-C        stop the answer",
        "A line that begins with a space is a message, whatever follows.",
    ]
)

# Control characters would let a model move the cursor or recolour the terminal; they are shown as symbols.
VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD),
}


def chat(
    folder: Path,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 512,
    seed: int | None = None,
    system: str | None = None,
) -> None:
    """Talk to the model in `folder`. Raises HerdError at the end when lines of a piped input failed."""
    from herd.engine.load import load

    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            # A stray byte, or a letter that the terminal cannot show, is no reason to end a conversation.
            stream.reconfigure(errors="replace")
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    converse(Conversation(load(folder), params, system=system), name=str(folder))


def converse(conversation: "Conversation", *, name: str) -> None:
    """Hold the conversation on the terminal if there is one, else over the pipe; closes the engine."""
    with asyncio.Runner() as runner:
        try:
            if sys.stdin.isatty() and sys.stdout.isatty():
                on_terminal(conversation, runner, name=name)
            else:
                over_pipe(conversation, runner, sys.stdin)
        finally:
            # While the loop is still open: the engine's thread may be telling it about a stopped answer.
            conversation.engine.close()


class Quit(Exception):
    """The user wants to leave."""


class Conversation:
    """Messages so far, pictures and videos that wait for the next one, and the model that answers."""

    def __init__(self, model: "Model", params: SamplingParams, *, system: str | None) -> None:
        self.model, self.params = model, params
        self.engine = model.engine()
        self._system = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        self.messages: list[dict[str, Any]] = list(self._system)
        self.attached: list[dict[str, Any]] = []

    def attach(self, kind: str, path: str) -> str:
        """Keep the picture or video at `path` for the next message; says what was attached."""
        if not path:
            raise HerdError(f"/{kind} needs a path, as in: /{kind} {'cat.png' if kind == 'image' else 'cat.mp4'}")
        file = Path(path).expanduser()
        if kind == "video":
            frames = read_video(file)
            self.attached.append(video_part(frames))
            return f"attached {path} ({len(frames)} frames, {frames[-1][0]:.1f} s)"
        picture = read_picture(file)
        self.attached.append({"type": "image", "image": picture})
        return f"attached {path} ({picture.width} x {picture.height})"

    async def answer(self, text: str) -> AsyncGenerator[Piece, None]:
        """Pieces of the answer to `text`. Closed early, what was said by then stays in the conversation."""
        parts = [*self.attached, {"type": "text", "text": text}]
        question = {"role": "user", "content": parts if self.attached else text}
        prompt = self.model.render([*self.messages, question])
        room = fitted(prompt, self.params, max_tokens=None, context=self.engine.capacity).max_tokens
        params = dataclasses.replace(self.params, max_tokens=min(room, self.params.max_tokens))
        said, ended = "", False
        try:
            async with answering(self.engine, prompt, params) as pieces:
                async for piece in pieces:
                    said, ended = said + piece.text, piece.finish_reason is not None
                    yield piece
        finally:
            # Stopped before the first word, it was never asked: the picture still waits for its question.
            if said or ended:
                self.messages += [question, {"role": "assistant", "content": said}]
                self.attached = []


def command(conversation: Conversation, line: str) -> str:
    """Do what a line that begins with a slash asks for; returns what to tell the user."""
    name, _, rest = line.strip().partition(" ")
    match name:
        case "/image" | "/video":
            return conversation.attach(name[1:], rest.strip().strip("'\""))
        case "/reset":
            conversation.reset()
            return "a new conversation"
        case "/help":
            return HELP
        case "/quit":
            raise Quit
        case _:
            raise unknown("command", name, COMMANDS)


def on_terminal(conversation: Conversation, runner: asyncio.Runner, *, name: str) -> None:
    """Read, answer, repeat, until Ctrl-D, /quit, or Ctrl-C at an empty prompt that follows another Ctrl-C."""
    colour = "NO_COLOR" not in os.environ
    # \001 and \002 tell readline which characters take no room.
    prompt = "\001\033[1;32m\002> \001\033[0m\002" if colour else "> "

    def note(text: str) -> None:
        print(f"\033[2m{text}\033[0m" if colour else text)

    async def say(text: str) -> None:
        reason = None
        async with aclosing(conversation.answer(text)) as pieces:
            async for piece in pieces:
                print(piece.text.translate(VISIBLE), end="", flush=True)
                reason = piece.finish_reason
        print()
        if reason == "length":
            note("(cut off at the limit of tokens)")

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
                    note(command(conversation, line))
                elif line.strip():
                    runner.run(say(line.strip()))
            except Quit:
                return
            except HerdError as error:
                print(f"\033[31m{error}\033[0m" if colour else error)
            except KeyboardInterrupt:
                print()
                interrupted = True
                note("(stopped; Ctrl-C again or Ctrl-D leaves)")


def over_pipe(conversation: Conversation, runner: asyncio.Runner, lines: Iterable[str]) -> None:
    """Answer every line; answers alone go to standard output."""

    async def say(text: str) -> None:
        async with aclosing(conversation.answer(text)) as pieces:
            async for piece in pieces:
                print(piece.text, end="", flush=True)
        print(flush=True)

    num_failed = 0
    for line in lines:
        try:
            if line.startswith("/"):
                print(command(conversation, line), file=sys.stderr)
            elif line.strip():
                runner.run(say(line.strip()))
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
        raise HerdError(f"{num_failed} of the lines failed, as told above")


@contextmanager
def line_editing(path: Path) -> Iterator[Callable[[], str]]:
    """Arrow keys, and the lines of earlier sessions from `path`; gives what stood in a line that Ctrl-C ended."""
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

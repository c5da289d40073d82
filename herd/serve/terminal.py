"""`herd chat`: a conversation on the terminal, or over a pipe when there is none.

On a terminal lines are edited with readline, whose history is kept in the cache folder. Over a pipe every line of
standard input is a turn and only answers go to standard output; what went wrong goes to standard error.
The conversation is kept as messages and lives as long as the program.
"""

import asyncio
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herd.core.errors import HerdError, unknown
from herd.core.files import cache_folder, write_atomic
from herd.data.chat import checked_text
from herd.data.image import read_picture
from herd.data.video import read_video, video_part
from herd.engine.answer import Piece
from herd.engine.engine import Engine
from herd.engine.sampler import SamplingParams
from herd.serve.session import answering, fitted

if TYPE_CHECKING:
    from herd.engine.load import Model

COMMANDS = {
    "/image": "/image PATH   attach a picture to the next message (several are welcome)",
    "/video": "/video PATH   attach frames of a video, with their times",
    "/system": '/system TEXT  tell the model this before the conversation; alone: show it; "": nothing',
    "/save": "/save PATH    write the conversation as a line of JSON, which herd generate reads",
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
    params: SamplingParams,
    *,
    system: str | None = None,
    guess: int = 0,
    draft: Path | None = None,
) -> None:
    """Talk to the model in `folder`. Raises HerdError at the end when lines of a piped input failed."""
    from herd.engine.load import load

    model = load(folder)
    engine = model.engine(num_slots=1, guess_tokens=guess, draft=load(draft) if draft else None)
    converse(Conversation(model, engine, params, system=system), name=str(folder))


def converse(conversation: "Conversation", *, name: str) -> None:
    """Hold the conversation on the terminal if there is one, else over the pipe; closes the engine."""
    # A stray byte, or a letter that the terminal cannot show, is no reason to end a conversation.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
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
    """Messages so far, pictures and videos that wait for the next one, and the engine that answers; it is closed at the
    end by who holds the conversation."""

    def __init__(self, model: "Model", engine: Engine, params: SamplingParams, *, system: str | None) -> None:
        self.model, self.engine, self.params = model, engine, params
        self.system, self.used = system and checked_text(system, "system"), 0
        """What the model is told first; tokens of the context that the conversation takes."""
        self._saved: set[Path] = set()
        self.reset()

    def reset(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.attached: list[dict[str, Any]] = []

    def tell(self, system: str) -> str:
        """Say something else to the model before the conversation, from the next message on; says what it is told."""
        if system:
            self.system = checked_text(system, "/system").strip("\"'") or None
        return f"the model is told: {self.system}" if self.system else "the model is told nothing before"

    def save(self, path: str) -> str:
        """Write the conversation; an older file of the same name only if this program wrote it."""
        if not path:
            raise HerdError("/save needs a path, as in: /save talk.jsonl")
        file = Path(path).expanduser().resolve()
        if file.exists() and file not in self._saved:
            raise HerdError(f"{path} is there already: give another path")
        if not file.parent.is_dir():
            raise HerdError(f"{file.parent} is no folder: make it first")
        # Of pictures and videos, where they lie.
        line = json.dumps({"messages": self._told(saved=True)}, ensure_ascii=False)
        write_atomic(file, line + "\n")
        self._saved.add(file)
        return f"wrote {path} ({len(self.messages)} messages)"

    def _told(self, *, saved: bool = False) -> list[dict[str, Any]]:
        """The system message if there is one, and the conversation."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*first, *self.messages]
        if not saved:
            return messages

        def content(parts: Any) -> Any:
            return parts if isinstance(parts, str) else [part.get("saved", part) for part in parts]

        return [{**message, "content": content(message["content"])} for message in messages]

    def attach(self, kind: str, path: str) -> str:
        """Keep the picture or video at `path` for the next message; says what was attached."""
        if not path:
            raise HerdError(f"/{kind} needs a path, as in: /{kind} {'cat.png' if kind == 'image' else 'cat.mp4'}")
        file = Path(path).expanduser()
        if kind == "video":
            frames = read_video(file)
            saved = {"type": "video", "video": str(file.resolve())}
            self.attached.append({**video_part(frames), "saved": saved})
            return f"attached {path} ({len(frames)} frames, {frames[-1][0]:.1f} s)"
        picture = read_picture(file)
        saved = {"type": "image", "image": str(file.resolve())}
        self.attached.append({"type": "image", "image": picture, "saved": saved})
        return f"attached {path} ({picture.width} x {picture.height})"

    async def answer(self, text: str) -> AsyncGenerator[Piece, None]:
        """Pieces of the answer to `text`. Closed early, what was said by then stays in the conversation."""
        parts = [*self.attached, {"type": "text", "text": text}]
        question = {"role": "user", "content": parts if self.attached else text}
        prompt = self.model.render([*self._told(), question])
        room = fitted(prompt, self.params, max_tokens=None, context=self.engine.capacity).max_tokens
        params = dataclasses.replace(self.params, max_tokens=min(room, self.params.max_tokens))
        said, ended, self.used = "", False, len(prompt.token_ids)
        try:
            async with answering(self.engine, prompt, params) as pieces:
                async for piece in pieces:
                    said, ended = said + piece.text, piece.finish_reason is not None
                    self.used += len(piece.token_ids)
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
        case "/system":
            return conversation.tell(rest.strip())
        case "/save":
            return conversation.save(rest.strip())
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
        reason, count, begin = None, 0, time.monotonic()
        async with aclosing(conversation.answer(text)) as pieces:
            async for piece in pieces:
                if not count:
                    begin = time.monotonic()  # the rate is of what follows the first tokens: before, the prompt is read
                count += len(piece.token_ids)
                print(piece.text.translate(VISIBLE), end="", flush=True)
                reason = piece.finish_reason
        print()
        if reason == "length":
            note("(cut off at the limit of tokens)")
        rate = f"{(count - 1) / max(1e-9, time.monotonic() - begin):,.1f} tokens/s; " if count > 1 else ""
        note(f"({rate}{conversation.used:,} of {conversation.engine.capacity:,} tokens of context used)")

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
                    runner.run(say(checked_text(line.strip(), "the line")))
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
    for number, line in enumerate(lines, start=1):
        try:
            if line.startswith("/"):
                print(command(conversation, line), file=sys.stderr)
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

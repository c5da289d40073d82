"""The commands of `herd chat` that begin with a slash: attach, save, reset, …"""

from pathlib import Path

from herd.core.files import write_atomic
from herd.data.tokens.chat import checked_text
from herd.errors import HerdError, unknown
from herd.serve.session import ChatSession

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


class Quit(Exception):
    """The user wants to leave."""


class Commands:
    """The commands over one session."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._saved: set[Path] = set()
        """Files that were written here, and so may be written again."""

    def run(self, line: str) -> str:
        """Do what a line that begins with a slash asks for; returns what to show the user."""
        name, _, rest = line.strip().partition(" ")
        match name:
            case "/image" | "/video":
                return self._attach(name[1:], rest.strip().strip("'\""))
            case "/system":
                return self._set_system(rest.strip())
            case "/save":
                return self._save(rest.strip())
            case "/reset":
                self._session.reset()
                return "a new conversation"
            case "/help":
                return HELP
            case "/quit":
                raise Quit
            case _:
                raise unknown("command", name, COMMANDS)

    def _attach(self, kind: str, path: str) -> str:
        if not path:
            raise HerdError(f"/{kind} needs a path, as in: /{kind} {'cat.png' if kind == 'image' else 'cat.mp4'}")
        part = self._session.conversation.attach(kind, path)
        if kind == "video":
            frames = part["frames"]
            return f"attached {path} ({len(frames)} frames, {frames[-1][0]:.1f} s)"
        return f"attached {path} ({part['image'].width} x {part['image'].height})"

    def _set_system(self, text: str) -> str:
        """From the next message on; without a text it only shows what there is."""
        conversation = self._session.conversation
        if text:
            conversation.system = checked_text(text, "/system").strip("\"'") or None
        return f"system message: {conversation.system}" if conversation.system else "no system message"

    def _save(self, path: str) -> str:
        """An older file of the same name is replaced only if this program wrote it."""
        if not path:
            raise HerdError("/save needs a path, as in: /save talk.jsonl")
        file = Path(path).expanduser().resolve()
        if file.exists() and file not in self._saved:
            raise HerdError(f"{path} is there already: give another path")
        if not file.parent.is_dir():
            raise HerdError(f"{file.parent} is no folder: make it first")
        conversation = self._session.conversation
        write_atomic(file, conversation.to_json() + "\n")
        self._saved.add(file)
        return f"wrote {path} ({len(conversation.messages)} messages)"

"""`herd channels simulate`: a chat on the terminal through the whole of a channel, with a stand-in for Meta.

What is typed goes out as a signed webhook to a server of this machine, into its store, through the delivery loop, and
comes back over a double of the Graph API. Nothing leaves the machine, and nothing is kept.
"""

import itertools
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from herd.core.files import read_bytes
from herd.errors import HerdError
from herd.serve.channels import outbox
from herd.serve.channels.config import Channel, ChannelsConfig, Options
from herd.serve.channels.delivery import Answerer
from herd.serve.channels.double import GraphDouble, Received, local_accounts, signed
from herd.serve.channels.events import SIGNATURE_HEADER
from herd.serve.channels.service import Channels, running_channels

PEOPLE: dict[Channel, str] = {
    "whatsapp": "16505551234",
    "messenger": "9876543210123456",
    "instagram": "6543210987654321",
}
HELP = """/image PATH [TEXT]  send a picture
/edit TEXT          edit the last message (until it is answered)
/delete             delete the last message
/again              deliver the last message once more, as Meta does
/counts             what the channel has counted
/quit               leave"""


@contextmanager
def local_server(app: ASGIApp) -> Iterator[str]:
    """Serve `app` on a free port of this machine, in a thread; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Simulation:
    """A person on one channel, in front of a running herd."""

    def __init__(self, channel: Channel, double: GraphDouble, channels: Channels, url: str) -> None:
        self.channel, self.double, self.channels, self.who = channel, double, channels, PEOPLE[channel]
        self._url, self._numbers = f"{url}/webhooks/{channel}", itertools.count(1)
        self._last: tuple[str, dict[str, Any]] = ("", {})
        self._num_edits = 0
        self._client = httpx2.Client(trust_env=False, verify=False)  # to this machine alone

    def close(self) -> None:
        self._client.close()

    def post(self, payload: dict[str, Any]) -> None:
        body, signature = signed(payload, self.double.accounts[self.channel].app_secret)
        response = self._client.post(self._url, content=body, headers={SIGNATURE_HEADER: signature})
        if response.status_code != 200:
            raise HerdError(f"the webhook was answered with {response.status_code}: {response.text}")

    def say(self, text: str, *, image: str = "") -> None:
        mid = f"{'wamid' if self.channel == 'whatsapp' else 'mid'}.{next(self._numbers)}"
        payload = self.double.message(self.channel, text, who=self.who, mid=mid, image=image)
        self._last, self._num_edits = (mid, payload), 0
        self.post(payload)

    def run(self, line: str) -> str:
        """Do what a line says, which may be a command; returns a note."""
        name, _, rest = line.partition(" ")
        if not line.startswith("/"):
            self.say(line)
        elif name == "/image" and rest:
            path, _, text = rest.strip().partition(" ")
            data = read_bytes(Path(path).expanduser())
            key = str(next(self._numbers))
            self.double.media[key] = ("image/jpeg" if data[:2] == b"\xff\xd8" else "image/png", data)
            self.say(text, image=key)
        elif name in ("/edit", "/delete", "/again") and not self._last[0]:
            return "there is no message yet"
        elif name == "/edit" and rest:
            self._edit(rest)
        elif name == "/delete":
            self._delete()
        elif name == "/again":
            self.post(self._last[1])
        elif name == "/counts":
            found = outbox.counts(self.channels.store).get(self.channel, {})
            return "\n".join(f"{num:6} {what}" for what, num in found.items())
        else:
            return HELP
        return ""

    def _edit(self, text: str) -> None:
        mid, self._num_edits = self._last[0], self._num_edits + 1
        if self.channel == "instagram":
            raise HerdError("Instagram tells of no edits: use /delete")
        if self.channel == "messenger":
            edit = {"message_edit": {"mid": mid, "text": text, "num_edit": self._num_edits}}
            self.post(self.double.event(self.channel, edit, who=self.who))
            return
        content = {"original_message_id": mid, "message": {"type": "text", "text": {"body": text}}}
        self._system("edit", content, f"{mid}.edit{self._num_edits}")

    def _delete(self) -> None:
        mid = self._last[0]
        if self.channel == "whatsapp":
            self._system("revoke", {"original_message_id": mid}, f"{mid}.revoke")
        else:
            self.post(self.double.event(self.channel, {"message": {"mid": mid, "is_deleted": True}}, who=self.who))

    def _system(self, kind: str, content: dict[str, Any], mid: str) -> None:
        message = {"from": self.who, "id": mid, "timestamp": str(int(time.time())), "type": kind, kind: content}
        self.post(self.double.whatsapp({"contacts": [{"wa_id": self.who}], "messages": [message]}))

    def settle(self, *, timeout_s: float = 600.0) -> None:
        """Wait until nothing waits for an answer or for being sent."""
        waiting = "SELECT 1 FROM messages WHERE state = 'new' UNION ALL SELECT 1 FROM turns WHERE state = 'open'"
        deadline = time.monotonic() + timeout_s
        while self.channels.store.db.execute(waiting).fetchone() is not None:
            if time.monotonic() > deadline:
                raise HerdError(f"there is no answer after {timeout_s:.0f} s")
            time.sleep(0.05)


@contextmanager
def simulation(channel: Channel, options: Options, answerer: Answerer, folder: Path) -> Iterator[Simulation]:
    """Everything that a channel needs, on this machine; the store is in `folder`."""
    double = GraphDouble(local_accounts("http://127.0.0.1/v25.0"), "")
    with ExitStack() as stack:
        graph = stack.enter_context(local_server(double.app))
        double.accounts = local_accounts(f"{graph}/v25.0")
        config = ChannelsConfig(options=options, accounts=double.accounts, store=folder / "channels.sqlite")
        channels = stack.enter_context(running_channels(config, answerer))
        double.webhooks = stack.enter_context(local_server(channels.wrap(Starlette())))
        made = Simulation(channel, double, channels, double.webhooks)
        stack.callback(made.close)
        yield made


def talk(channel: Channel, options: Options, answerer: Answerer) -> None:
    """Chat on the terminal until Ctrl-D or /quit; over a pipe each line is answered before the next is read."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="herd-channels-"))
        made = stack.enter_context(simulation(channel, options, answerer, Path(folder)))
        if sys.stdin.isatty():
            made.double.on_text = lambda text: print(f"\n{_shown(text)}\n> ", end="", flush=True)
            print(f"You are {made.who} on {channel}. /help lists the commands, Ctrl-D leaves.")
            _interact(made)
        else:
            made.double.on_text = lambda text: print(_shown(text), flush=True)
            _read(made, sys.stdin)


def _shown(text: Received) -> str:
    """Without the control characters by which a model could move the cursor."""
    return "".join(c if c == "\n" or c.isprintable() else "�" for c in text.text)


def _interact(made: Simulation) -> None:
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line == "/quit":
            return
        try:
            if line and (note := made.run(line)):
                print(note)
        except HerdError as error:
            print(error)


def _read(made: Simulation, lines: Iterable[str]) -> None:
    for line in lines:
        if line.strip() == "/quit":
            return
        if line.strip() and (note := made.run(line.strip())):
            print(note, file=sys.stderr)
        made.settle()


def simulate(folder: Path, *, channel: Channel, options: Options, params: Any, config: Any, base: Path | None) -> None:
    """Chat with the model in `folder` as a person on `channel`."""
    from herd.engine.engine import Engine
    from herd.engine.load import load
    from herd.engine.pipeline import AnswerPipeline
    from herd.serve.channels.answer import PipelineAnswerer

    model = load(folder, base=base)
    engine = Engine(model, config)
    try:
        talk(channel, options, PipelineAnswerer(AnswerPipeline(model, engine), params, options))
    finally:
        engine.close()

"""The delivery loop: who waits is answered, one answer at a time for each person, and each part of it once.

One process delivers for a store (the others only receive): it holds the lock beside the file. What it does is on the
disk before it is done, so it can be killed at any point. A person's turn is: open answers first; then the waiting
messages, joined; commands and limits before the model.
"""

import asyncio
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from herd.errors import HerdError, Stopped
from herd.serve.channels import outbox
from herd.serve.channels.config import ChannelsConfig
from herd.serve.channels.events import Media
from herd.serve.channels.graph import Graph, NotSent, Sent
from herd.serve.channels.outbox import Part, Pending, Person
from herd.serve.channels.store import Store
from herd.serve.channels.text import split_text

log = logging.getLogger("herd.channels")

POLL_S = 0.5
"""Other processes receive too, and cannot wake us."""
TYPING_S = 20.0
"""WhatsApp shows typing for 25 s, the others for about 20."""
MAX_ATTEMPTS = 3
"""Of an answer that fails, before that is said."""
MAX_BACKOFF_S = 600.0
ACCOUNT_PAUSE_S = 30.0
MAX_SENDING = 4
"""Requests at a time: of so many parts at most it is not known after a crash whether they were sent."""
STOP_S = 10.0
"""For requests that are under way when the loop stops."""
HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the model is asked: earlier messages as (role, text, pictures), and what is new."""

    caller: str
    history: Sequence[tuple[str, str, list[bytes]]]
    text: str
    pictures: Sequence[bytes]


@dataclass(frozen=True, kw_only=True)
class Answer:
    text: str
    blocked: bool = False
    """By a guard: neither the question nor the answer is part of the conversation."""


class Answerer(Protocol):
    async def answer(self, turn: Turn) -> Answer:
        """The answer to a turn. An error is tried again; after Stopped nothing is, until the next start."""


class Delivery:
    """Delivers what is in the store until it is stopped."""

    def __init__(
        self, config: ChannelsConfig, store: Store, answerer: Answerer, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.config, self.options, self.store, self.answerer, self.clock = (
            config, config.options, store, answerer, clock,
        )  # fmt: skip
        self._graphs: dict[str, Graph] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._paused: dict[str, tuple[float, float]] = {}
        """Of a channel whose account is at fault: until when, and the next pause."""
        self._last_sent: dict[int, float] = {}
        self._sending = asyncio.Semaphore(MAX_SENDING)
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False

    # From other threads

    def wake(self) -> None:
        """There is something new; from any thread."""
        self._call(self._wake.set)

    def stop(self) -> None:
        """End soon; from any thread."""
        self._stopping = True
        self._call(self._wake.set)

    def _call(self, function: Callable[[], None]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(function)

    # The loop

    async def run(self) -> None:
        """Deliver until `stop`, as soon as no other process does."""
        self._loop = asyncio.get_running_loop()
        lock = os.open(f"{self.config.store}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not self._stopping:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await self._sleep(POLL_S)
            if not self._stopping:
                await self._deliver()
        finally:
            os.close(lock)

    async def _deliver(self) -> None:
        if unknown := outbox.recover(self.store, self.clock()):
            log.warning("%d parts may or may not have been sent before the last stop: they are not sent again", unknown)
        self._graphs = {name: Graph(account) for name, account in self.config.accounts.items()}
        cleaned = 0.0
        try:
            while not self._stopping:
                self._wake.clear()
                try:
                    if self.clock() - cleaned > HOUR_S:
                        cleaned = self.clock()
                        outbox.retain(self.store, self.options.retention_days, cleaned)
                        self._last_sent = {one: at for one, at in self._last_sent.items() if at > cleaned - 60}
                    next_at = self._start_due()
                except sqlite3.Error as error:  # a full disk, say: nothing is lost, it goes on when there is room
                    log.error("the store fails (%s): tried again", error)
                    next_at = self.clock() + POLL_S
                await self._sleep(min(POLL_S, max(0.01, next_at - self.clock())))
        finally:
            for task in self._tasks.values():
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=STOP_S)
            for graph in self._graphs.values():
                await graph.close()

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    def _start_due(self) -> float:
        """Begin with everybody whose time has come; the time at which the next one's comes."""
        now = self.clock()
        waiting = outbox.due(self.store, join_s=self.options.join_s, max_join_s=self.options.max_join_s)
        for person_id, channel, at in waiting:
            if person_id in self._tasks or channel not in self._graphs:
                continue
            at = max(at, self._paused.get(channel, (0.0, 0.0))[0])
            if at > now:
                return at
            if len(self._tasks) >= self.options.max_answers:
                break
            task = asyncio.create_task(self._serve(person_id))
            self._tasks[person_id] = task
            task.add_done_callback(lambda done, person_id=person_id: self._ended(person_id, done))  # type: ignore[misc]
        return now + POLL_S

    def _ended(self, person_id: int, task: asyncio.Task[None]) -> None:
        del self._tasks[person_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a conversation failed and is tried again", exc_info=error)
            return  # with the next poll
        self._wake.set()

    async def _serve(self, person_id: int) -> None:
        """One step for a person: the next part of an open answer, or an answer to what waits."""
        person = outbox.person(self.store, person_id)
        if person is None:
            return
        waiting = outbox.pending(self.store, person.id)
        command = self._command(waiting)
        if command in ("opt_out", "forget"):
            outbox.cancel(self.store, person.id, command, self.clock())
        part = outbox.next_part(self.store, person.id)
        if part is not None:
            await self._settle(person, part)
        elif waiting:
            await self._answer(person, waiting, command)

    # Answers

    def _command(self, waiting: Sequence[Pending]) -> str:
        """The last of the waiting messages that is a command, by name."""
        words, found = self.options.words, ""
        for one in waiting:
            said = one.text.strip(" \t\n.!?/\"'").casefold()
            for name in ("opt_out", "opt_in", "handover", "forget"):
                if said and said in (word.casefold() for word in getattr(words, name)):
                    found = name
        return found

    async def _answer(self, person: Person, waiting: list[Pending], command: str) -> None:
        now, texts = self.clock(), self.options.texts
        late = [one for one in waiting if one.time + outbox.WINDOW_S - outbox.WINDOW_MARGIN_S < now]
        if late:
            self._say(person, late, "", reason="too late")
            waiting = [one for one in waiting if one not in late]
        if not waiting:
            return
        if command == "forget":
            outbox.forget(self.store, person.id, self.clock())
            self._say(person, waiting, texts.forgotten, reason="forget")
            outbox.forget(self.store, person.id, self.clock())
        elif command == "opt_out":
            said = "" if person.opted_out else texts.opted_out
            self._say(person, waiting, said, reason="opted out", also="opted_out = 1")
        elif command == "opt_in" and person.opted_out:
            self._say(person, waiting, texts.opted_in, reason="opted in", also="opted_out = 0")
        elif person.opted_out:
            self._say(person, waiting, "", reason="opted out")
        elif person.handed_over_until > now:
            self._say(person, waiting, "", reason="handed over")
        elif command == "handover":
            until = now + HOUR_S * self.options.handover_hours if self.options.handover_hours else 1e12
            self._say(person, waiting, texts.handed_over, reason="handed over", also=f"handed_over_until = {until:f}")
        elif self._is_over_limit(person, len(waiting), now):
            said = "" if person.limited_until > now else texts.limited
            self._say(person, waiting, said, reason="over the limit", also=f"limited_until = {now + HOUR_S:f}")
        elif not any(one.text.strip() or one.media for one in waiting):
            self._say(person, waiting, texts.unreadable, reason="unreadable")
        else:
            await self._ask(person, waiting)

    def _is_over_limit(self, person: Person, num: int, now: float) -> bool:
        if person.limited_until > now:
            return True
        limits = ((HOUR_S, self.options.messages_per_hour), (24 * HOUR_S, self.options.messages_per_day))
        return any(outbox.num_answered(self.store, person.id, now - span) + num > most for span, most in limits)

    def _say(self, person: Person, messages: Sequence[Pending], text: str, *, reason: str, also: str = "") -> None:
        """Say something without the model, or nothing."""
        parts = self._parts(person, text)
        outbox.answer(self.store, person.id, messages, text, parts, self.clock(), reason=reason, also=also)

    def _parts(self, person: Person, text: str) -> list[str]:
        traits = self.config.accounts[person.channel].traits  # type: ignore[index]
        return split_text(text, traits.cap, traits.unit)

    async def _ask(self, person: Person, waiting: list[Pending]) -> None:
        """Have the model answer. What comes meanwhile waits for the next answer; an edit begins this one anew."""
        graph = self._graphs[person.channel]
        try:
            async with self._typing(graph, person, waiting[-1].mid):
                lines, pictures = await self._read(graph, waiting)
                answer = await self.answerer.answer(
                    Turn(
                        caller=f"{person.channel}:{person.id}",
                        history=outbox.history(self.store, person.id, self.options.max_history),
                        text="\n".join(lines),
                        pictures=pictures,
                    )
                )
        except Stopped:
            self.stop()
            return
        except Exception as error:
            outbox.count_attempt(self.store, waiting)
            if max(one.attempts for one in waiting) + 1 < MAX_ATTEMPTS:
                log.warning("%s: no answer, tried again: %s", person.channel, error)
                await asyncio.sleep(1)
                return
            log.error("%s: no answer after %d attempts", person.channel, MAX_ATTEMPTS, exc_info=error)
            self._say(person, waiting, self.options.texts.failed, reason="failed")
            return
        text = answer.text.strip()
        if not text:
            self._say(person, waiting, self.options.texts.failed, reason="empty")
            return
        reason = "blocked" if answer.blocked else ""
        parts = self._parts(person, text)
        outbox.answer(self.store, person.id, waiting, text, parts, self.clock(), reason=reason)

    async def _read(self, graph: Graph, waiting: Sequence[Pending]) -> tuple[list[str], list[bytes]]:
        """The text of the messages, and their pictures; what cannot be read is named."""
        lines, pictures = list[str](), list[bytes]()
        for one in waiting:
            for media_id, ref, mime, data in one.media:
                if data is None:
                    try:
                        data = await graph.fetch(Media(ref=ref, mime=mime))
                    except HerdError as error:
                        log.warning("%s: %s", graph.account.channel, error)
                        lines.append("[a picture that cannot be opened]")
                        continue
                    outbox.keep_picture(self.store, media_id, data)
                pictures.append(data)
            if one.name and not one.text:
                lines.append(f"[{one.name}, which cannot be read here]")
            if one.text:
                lines.append(one.text)
        return lines, pictures

    @asynccontextmanager
    async def _typing(self, graph: Graph, person: Person, message_id: str) -> AsyncGenerator[None, None]:
        """While within, the person sees that an answer is being written."""
        written = asyncio.Event()

        async def show() -> None:
            first = True
            while not written.is_set():
                await graph.show_typing(person.who, message_id, first=first)
                first = False
                with suppress(TimeoutError):
                    await asyncio.wait_for(written.wait(), TYPING_S)

        task = asyncio.create_task(show())
        try:
            yield
        finally:
            # Its request ends by itself, and before the answer is sent: typing must not be shown after that.
            written.set()
            await asyncio.wait([task])

    # Parts

    async def _settle(self, person: Person, part: Part) -> None:
        """Send a part, or decide about one of which it is not known whether it was sent."""
        now = self.clock()
        if part.state != "ready":
            waits_until = part.time + self.options.unknown_wait_s
            if waits_until <= now:
                # The next parts would be out of their order, or without their beginning.
                outbox.set_state(self.store, part, "unknown", now, error="no receipt", ends=True)
            else:
                with self.store.transaction() as db:
                    sql = "UPDATE turns SET next_try = ? WHERE id = ? AND next_try < ?"
                    db.execute(sql, (waits_until, part.turn, waits_until))
            return
        if person.last_user_time + outbox.WINDOW_S - outbox.WINDOW_MARGIN_S < now:
            outbox.set_state(self.store, part, "expired", now, error="24 hours", ends=True)
            return
        gap = self.config.accounts[person.channel].traits.part_gap_s if part.number else 0.0  # type: ignore[index]
        wait = self._last_sent.get(person.id, 0.0) + gap - now
        if wait > 0:
            await asyncio.sleep(wait)
        async with self._sending:
            if outbox.begin_sending(self.store, part, self.clock()):
                # A request that has left is waited for, even when the loop stops: else nobody would know its end.
                await _finish(self._send(person, part))

    async def _send(self, person: Person, part: Part) -> None:
        outcome = await self._graphs[person.channel].send(person.who, part.text, part.token)
        now = self.clock()
        self._last_sent[person.id] = now
        if isinstance(outcome, Sent):
            self._paused.pop(person.channel, None)
            outbox.set_state(self.store, part, "sent", now, message_id=outcome.message_id)
        elif isinstance(outcome, NotSent):
            self._not_sent(person, part, outcome, now)
        else:
            log.warning("%s: not known whether a part was sent (%s)", person.channel, outcome.error)
            until = now + self.options.unknown_wait_s
            outbox.set_state(self.store, part, "unknown", now, error=outcome.error, next_try=until)

    def _not_sent(self, person: Person, part: Part, outcome: NotSent, now: float) -> None:
        if outcome.fault == "window":
            outbox.set_state(self.store, part, "expired", now, error=outcome.error, ends=True)
        elif outcome.fault == "message":
            log.error("%s: a part was refused (%s)", person.channel, outcome.error)
            outbox.set_state(self.store, part, "failed", now, error=outcome.error, ends=True)
        else:
            wait = max(outcome.retry_after_s, min(4.0**part.attempts, MAX_BACKOFF_S))  # as Meta recommends
            if outcome.fault == "account":
                pause = self._paused.get(person.channel, (0.0, ACCOUNT_PAUSE_S))[1]
                self._paused[person.channel] = (now + pause, min(2 * pause, MAX_BACKOFF_S))
                log.error(
                    "%s: nothing can be sent (%s): check access token, permissions and account; next try in %d s",
                    person.channel, outcome.error, pause,
                )  # fmt: skip
                wait = pause
            outbox.set_state(self.store, part, "ready", now, error=outcome.error, next_try=now + wait)


async def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Await `work` to its end; a cancellation takes effect after it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=STOP_S)
        raise

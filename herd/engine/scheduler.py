"""Which tokens of which requests the next forward computes. No torch: `schedule` plans a step, others compute it.

Each step every request that is being answered gets its next token, and the step's budget of tokens is spent on prompts,
in pieces that no chunk edge divides. Pictures are encoded tile by tile before their tokens are read; a tile costs as
much of the budget as its tokens, so that a long video delays nobody's next token. Pages are allocated as they are
needed. Where they run out, the request that was admitted last gives its own back and waits; later it reads again what
the tree (herd.engine.pages) has not kept. Where no priorities differ, the one that was admitted first is therefore
never held up; and as no request is accepted that could not have all it needs by itself, each one ends.

Callers share fairly: the next to be admitted, or to read, is of the caller that has had the fewest tokens; who comes
back from a pause does not bring a claim along. Among one caller's requests the oldest is first. A step of priority is
worth HEAD_START tokens in both orders: it puts off others, and may take their place, but for so long only. Nobody
starves: a head that does not fit lets none pass. Source: Sheng et al., "Fairness in Serving Large Language Models"
(2024), the virtual token counter.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

from herd.engine.pages import BlockTable, Copy, OutOfPages, PageManager

HEAD_START = 4096
"""Tokens that one step of priority is worth."""
MOST_PASSED = 64
"""Requests of one caller that are passed over while another one reads what they begin with."""


@dataclass(kw_only=True, eq=False)
class Request:
    """What the scheduler knows of a request; who runs it adds the rest."""

    content: list[int]
    """The prompt and what has been answered, as the tree compares them: token ids, for pictures' tokens digests."""
    num_prompt: int
    limit: int
    """Most tokens that `content` may come to."""
    caller: str = ""
    salt: str = ""
    """Only requests of the same salt share pages."""
    priority: int = 0
    reuse: bool = True
    """False: every token of the prompt is computed, as its log-probability is asked for."""
    tiles: Sequence[tuple[int, int]] = ()
    """Of each tile of the prompt's pictures, the place of its first token and the one after its last; ascending."""
    features: dict[int, Any] = field(default_factory=dict)
    """By number, the tiles that are encoded and not yet read; None: the step that is planned encodes it."""
    draft: list[int] = field(default_factory=list)
    """Drafted tokens behind `content`, computed along with its last token."""
    cancelled: bool = False
    table: BlockTable = field(default_factory=BlockTable)
    arrived: int = 0
    """Tokens that all callers had had when it came, less the head start of its priority."""
    rank: int | None = None
    """Number of its first admission."""
    charged: int = 0
    """Tokens that its caller has paid for: what is computed again is free."""
    reused: int = 0
    """Tokens that it did not compute, as the tree had them, when it was last admitted."""
    shared: int = 0
    """Tokens of its prompt that others can have from the tree."""


R = TypeVar("R", bound=Request)


@dataclass(frozen=True)
class Work(Generic[R]):
    """Tokens `begin` … `end` - 1 of one request's `content` and `draft`."""

    request: R
    begin: int
    end: int

    @property
    def num_logits(self) -> int:
        """How many of the last rows a next token is drawn after: 1, more with a draft, 0 inside the prompt."""
        return max(0, self.end - len(self.request.content) + 1)


@dataclass(kw_only=True)
class Step(Generic[R]):
    """One forward: first the tiles and the copies, in their order, then the work."""

    tiles: dict[R, list[int]] = field(default_factory=dict)
    """To be encoded, by number."""
    copies: list[Copy] = field(default_factory=list)
    works: dict[R, Work[R]] = field(default_factory=dict)
    refused: list[tuple[R, str]] = field(default_factory=list)
    """Requests that ended here, and why."""
    cancelled: list[R] = field(default_factory=list)


class Scheduler(Generic[R]):
    """At most `max_num_seqs` requests run at a time; a step reads at most `max_prefill_tokens` of prompts, or
    `max_mixed_prefill_tokens` where answers are under way and would wait for it."""

    def __init__(
        self, pages: PageManager, *, max_num_seqs: int, max_prefill_tokens: int, max_mixed_prefill_tokens: int
    ) -> None:
        self.pages, self.max_num_seqs = pages, max_num_seqs
        self.max_prefill_tokens, self.max_mixed_prefill_tokens = max_prefill_tokens, max_mixed_prefill_tokens
        self.running: list[R] = []
        """By rank."""
        self.waiting: dict[str, list[R]] = {}
        """By caller, the next one first."""
        self.served: dict[str, int] = {}
        """Tokens that a caller has had, of those who have requests here or are ahead of all who have."""
        self.clock = 0
        """Tokens that all have had."""
        self.num_preempted = 0
        self._ranks = count()

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, request: R) -> None:
        """Accept a request that `fits`."""
        if request.caller not in self.served or not self._has_requests(request.caller):
            others = [self.served[caller] for caller in self._callers()]
            self.served[request.caller] = max(self.served.get(request.caller, 0), min(others, default=0))
        request.arrived = self.clock - request.priority * HEAD_START
        self._wait(request)

    def fits(self, limit: int) -> bool:
        """Whether a request of so many tokens could run if it were alone."""
        whole, chunk = self.pages.needs(limit)
        return whole <= self.pages.global_pages.size and chunk <= self.pages.local_pages.size

    def schedule(self) -> Step[R]:
        """The next forward. After it, `truncate` what does not hold, then `enter` or `finish` each of its requests."""
        step: Step[R] = Step()
        preempted = self.num_preempted
        for request in [r for r in [*self.running, *self.all_waiting()] if r.cancelled]:
            self.finish(request)
            step.cancelled.append(request)
        decoding = [r for r in self.running if self._decodes(r)]
        reading = [r for r in self.running if r not in decoding]
        budget = self.max_mixed_prefill_tokens if decoding else self.max_prefill_tokens
        for request in decoding:
            if request not in self.running:
                continue  # preempted by one before it
            self._work(step, request, len(request.content) + len(request.draft))
        # Readers by what their callers have had; a stable sort, so by rank within a caller.
        for request in sorted(reading, key=lambda r: self.served[r.caller]):
            budget -= self._read(step, request, budget) if budget > 0 else 0
        if self.num_preempted > preempted:
            return step  # who has just given way must not come straight back
        while budget > 0 and (head := self._next()) is not None and self._make_room(step, head):
            step.copies += self._admit(head)
            budget -= self._read(step, head, budget)
        return step

    def enter(self, request: R) -> None:
        """What is computed may be shared from now on: full pages, and at the prompt's end its last page too."""
        at_end = request.shared < request.num_prompt <= request.table.length
        self.pages.enter(request.table, request.content, request.table.length, partly=at_end)
        request.shared = min(request.table.length, request.num_prompt)

    def truncate(self, request: R, length: int) -> None:
        """Only the first `length` tokens of what is computed hold, as where a draft was wrong."""
        self.pages.truncate(request.table, min(length, request.table.length))

    def finish(self, request: R, *, computed: bool = True) -> None:
        """The request has ended; `computed` False where the last step was planned for it, and failed."""
        if request in self.running:
            self.running.remove(request)
            self._release(request, request.table.length if computed else 0)
        else:
            self._remove_waiting(request)
        if not self._has_requests(request.caller):
            self._tidy()

    def forget_prefixes(self) -> None:
        """The weights are others: nothing computed before is shared any more, running requests keep what they have."""
        self.pages.forget_prefixes()

    def _decodes(self, request: R) -> bool:
        """Whether all of the request but its last token is computed, and no tile has to be encoded first."""
        length = request.table.length
        missing = any(last > length and tile not in request.features for tile, (_, last) in enumerate(request.tiles))
        return length >= len(request.content) - 1 and not missing

    def _read(self, step: Step[R], request: R, budget: int) -> int:
        """Plan tiles and tokens of a prompt for `budget` tokens, which the last tile may exceed; gives what it used."""
        if request not in self.running:
            return 0  # preempted by one before it
        begin = request.table.length
        encoded, end = self._encode(step, request, begin + budget, budget)
        end = min(end, begin + budget - encoded)
        return encoded + (self._work(step, request, end) if end > begin else 0)

    def _encode(self, step: Step[R], request: R, end: int, budget: int) -> tuple[int, int]:
        """Plan the tiles that tokens up to `end` need, for `budget` tokens. Returns the tokens that they count as, and
        how far the request can then be read."""
        begin, used = request.table.length, 0
        for tile, (first, last) in enumerate(request.tiles):
            if first >= end:
                break
            if last <= begin or tile in request.features:
                continue
            if used >= budget:
                return used, max(first, begin)
            step.tiles.setdefault(request, []).append(tile)
            request.features[tile] = None
            used += last - first
        return used, end

    def _work(self, step: Step[R], request: R, end: int) -> int:
        """Plan the request's tokens up to `end`; fewer at a chunk edge. Gives their number, 0 if there is no room."""
        if request not in self.running:
            return 0  # preempted by one before it
        begin, chunk = request.table.length, self.pages.chunk_size
        end = min(end, len(request.content) + len(request.draft), (begin // chunk + 1) * chunk)
        while True:
            try:
                self.pages.extend(request.table, end)
                break
            except OutOfPages:
                last = self.running[-1]
                self._preempt(step, last)
                if last is request:
                    return 0
            except OSError as error:
                step.tiles.pop(request, None)
                self.finish(request, computed=False)
                step.refused.append((request, f"the cache's file cannot grow: {error.strerror or error}"))
                return 0
        step.works[request] = Work(request, begin, end)
        new = max(0, end - max(begin, request.charged))
        self.served[request.caller] += new
        self.clock += new
        request.charged = max(request.charged, end)
        return end - begin

    def _preempt(self, step: Step[R], request: R) -> None:
        """Take a request's pages; it waits for its turn."""
        planned = step.works.pop(request, None)
        step.tiles.pop(request, None)
        self.running.remove(request)
        self._release(request, planned.begin if planned else request.table.length)
        self._wait(request)
        self.num_preempted += 1

    def _release(self, request: R, computed: int) -> None:
        """Give the request's pages back; the tree keeps what is computed while there is room."""
        self.pages.enter(request.table, request.content, computed, partly=True)
        self.pages.release(request.table)
        request.table, request.draft, request.shared = BlockTable(), [], 0
        request.features.clear()

    def _next(self) -> R | None:
        """Who is to be admitted next; who only waits for another one to read what both begin with is passed over."""
        heads = (
            next((request for request in queue[:MOST_PASSED] if not self._is_being_read(request)), None)
            for queue in self.waiting.values()
        )
        return min(
            (r for r in heads if r is not None),
            key=lambda r: (self.served[r.caller] - r.priority * HEAD_START, r.arrived),
            default=None,
        )

    def _is_being_read(self, request: R) -> bool:
        """Whether a running request is about to compute what this one would compute first."""
        return request.reuse and any(self._leads(reader, request) for reader in self.running)

    def _leads(self, reader: R, request: R) -> bool:
        if reader.table.node is None or reader.salt != request.salt or reader.shared >= reader.num_prompt:
            return False
        known, size = reader.shared, self.pages.size
        soon = min(known - known % size + size, reader.num_prompt, len(request.content) - 1)
        # The last tokens first: where prompts differ at all, they mostly differ there.
        return known < soon and all(
            reader.content[begin:end] == request.content[begin:end] for begin, end in ((known, soon), (0, known))
        )

    def _make_room(self, step: Step[R], request: R) -> bool:
        """Whether the request can be admitted, if need be in the place of one of less priority."""
        while len(self.running) >= self.max_num_seqs or not self._has_pages(request):
            lesser = [r for r in self.running if self._yields(r, request)]
            if not lesser:
                return False
            self._preempt(step, min(reversed(lesser), key=lambda r: r.priority))
        return True

    def _has_pages(self, request: R) -> bool:
        """Whether the whole of the request has room, and every running one a page more: it would soon take it back."""
        whole, chunk = self.pages.needs(len(request.content))
        for other in self.running:
            most_whole, most_chunk = self.pages.needs(other.limit)
            whole += most_whole > len(other.table.global_pages)
            chunk += most_chunk > len(other.table.local_pages)
        pools = self.pages.global_pages, self.pages.local_pages
        return all(
            pool.num_free + pool.num_evictable >= needed for pool, needed in zip(pools, (whole, chunk), strict=True)
        )

    def _yields(self, running: R, request: R) -> bool:
        if running.priority >= request.priority:
            return False
        if running.caller == request.caller:
            return request.arrived < running.arrived
        ahead = self.served[request.caller] - self.served[running.caller]
        return ahead < (request.priority - running.priority) * HEAD_START

    def _admit(self, request: R) -> list[Copy]:
        self._remove_waiting(request)
        if request.rank is None:
            request.rank = next(self._ranks)
        self.running.append(request)
        self.running.sort(key=lambda r: r.rank or 0)
        # The last token is computed in any case: the next one is drawn after it.
        limit = len(request.content) - 1 if request.reuse else 0
        copies = self.pages.begin(request.table, request.salt, request.content, limit)
        request.reused = request.table.length
        request.shared = min(request.reused, request.num_prompt)
        return copies

    def _wait(self, request: R) -> None:
        queue = self.waiting.setdefault(request.caller, [])
        insort(queue, request, key=lambda r: r.arrived)

    def _remove_waiting(self, request: R) -> None:
        queue = self.waiting[request.caller]
        queue.remove(request)
        if not queue:
            del self.waiting[request.caller]

    def all_waiting(self) -> Iterable[R]:
        return [request for queue in self.waiting.values() for request in queue]

    def _callers(self) -> set[str]:
        return {*self.waiting, *(request.caller for request in self.running)}

    def _has_requests(self, caller: str) -> bool:
        return caller in self._callers()

    def _tidy(self) -> None:
        """Forget what callers without requests have had, where it would be raised to the others' least anyway."""
        here = self._callers()
        least = min((self.served[caller] for caller in here), default=None)
        self.served = {
            caller: had for caller, had in self.served.items() if caller in here or (least is not None and had > least)
        }

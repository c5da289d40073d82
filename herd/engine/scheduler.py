"""Which tokens of which requests the next forward computes. No torch: `schedule` plans a step, others compute it.

Continuous batching with chunked prefill: in each step every decoding request gets its next token, and the step's budget
of tokens is spent on prompts, in pieces that do not cross a chunk edge. Pictures are encoded tile by tile before their
tokens are computed; a tile costs as much of the budget as its tokens, so that a long video delays no other request's
next token. Pages are allocated as they are needed. When they run out, the request that was admitted last is preempted:
its pages are freed, it waits, and later recomputes what the prefix cache (herd.engine.pages) has evicted. With equal
priorities the first request is therefore never delayed; and as a request that would not fit alone is refused, each one
ends.

Callers share fairly: the next request to be admitted or prefilled is of the caller that has had the fewest tokens; a
caller that was idle saves up no claim. Among one caller's requests the oldest is first. A step of priority is worth
HEAD_START tokens in both orders: it delays others, and may preempt them, but only for that long. No request starves:
while the first waiting one does not fit, none behind it is admitted. Source: Sheng et al., "Fairness in Serving Large
Language Models" (2024), the virtual token counter.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

from herd.engine.pages import BlockTable, OutOfPages, PageCopy, PageManager

HEAD_START = 4096
"""Tokens that one step of priority is worth."""
MAX_SKIPPED = 64
"""Waiting requests of one caller that are skipped while a running one computes the prefix that they share."""


@dataclass(kw_only=True, eq=False)
class Request:
    """What the scheduler knows of a request; the runner and the engine add the rest in subclasses."""

    content: list[int]
    """The prompt and the answer so far, as the prefix cache compares them: token ids, for pictures' tokens digests."""
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
    """By number, the tiles that are encoded but not yet computed; None: encoded by the step that is planned."""
    draft: list[int] = field(default_factory=list)
    """Drafted tokens behind `content`, computed along with its last token."""
    cancelled: bool = False
    table: BlockTable = field(default_factory=BlockTable)
    arrival: int = 0
    """Tokens that all callers had had when it was added, less the head start of its priority."""
    admission: int | None = None
    """Order in which requests were first admitted; None while it has not been."""
    num_charged: int = 0
    """Tokens that are counted as its caller's: what is computed again is free."""
    num_cached: int = 0
    """Tokens that the prefix cache had when it was last admitted, which are not computed."""
    num_shared: int = 0
    """Tokens of its prompt that are in the prefix cache."""


R = TypeVar("R", bound=Request)


@dataclass(frozen=True)
class ScheduledRequest(Generic[R]):
    """Tokens `begin` … `end` - 1 of one request's `content` and `draft`."""

    request: R
    begin: int
    end: int

    @property
    def num_logits(self) -> int:
        """Of how many of the last rows logits are needed: 1, more with a draft, 0 inside the prompt."""
        return max(0, self.end - len(self.request.content) + 1)


@dataclass(kw_only=True)
class Step(Generic[R]):
    """One forward: first the tiles and the copies, in their order, then the scheduled requests."""

    tiles: dict[R, list[int]] = field(default_factory=dict)
    """To be encoded, by number."""
    copies: list[PageCopy] = field(default_factory=list)
    scheduled: dict[R, ScheduledRequest[R]] = field(default_factory=dict)
    refused: list[tuple[R, str]] = field(default_factory=list)
    """Requests that ended here, and why."""
    cancelled: list[R] = field(default_factory=list)


class Scheduler(Generic[R]):
    """At most `max_num_seqs` requests run at a time; a step computes at most `max_prefill_tokens` of prompts, or
    `max_mixed_prefill_tokens` while other requests decode."""

    def __init__(
        self, pages: PageManager, *, max_num_seqs: int, max_prefill_tokens: int, max_mixed_prefill_tokens: int
    ) -> None:
        self.pages, self.max_num_seqs = pages, max_num_seqs
        self.max_prefill_tokens, self.max_mixed_prefill_tokens = max_prefill_tokens, max_mixed_prefill_tokens
        self.running: list[R] = []
        """In the order of their first admission."""
        self.waiting: dict[str, list[R]] = {}
        """By caller, the next one first."""
        self.served: dict[str, int] = {}
        """Tokens that each caller has had; kept for callers with requests, and for those ahead of all of them."""
        self.clock = 0
        """Tokens that all callers have had together."""
        self.num_preempted = 0
        self._admissions = count()

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, request: R) -> None:
        """Accept a request that `fits`."""
        if request.caller not in self.served or not self._has_requests(request.caller):
            others = [self.served[caller] for caller in self._callers()]
            self.served[request.caller] = max(self.served.get(request.caller, 0), min(others, default=0))
        request.arrival = self.clock - request.priority * HEAD_START
        self._enqueue(request)

    def fits(self, limit: int) -> bool:
        """Whether a request of so many tokens could run if it were alone."""
        whole, chunk = self.pages.num_pages(limit)
        return whole <= self.pages.global_pages.size and chunk <= self.pages.local_pages.size

    def schedule(self) -> Step[R]:
        """Plan the next forward. After it, `truncate` rejected drafts, then `cache_pages` or `finish` each of its
        requests."""
        step: Step[R] = Step()
        preempted = self.num_preempted
        for request in [r for r in [*self.running, *self.all_waiting()] if r.cancelled]:
            self.finish(request)
            step.cancelled.append(request)
        decoding = [r for r in self.running if self._is_decoding(r)]
        reading = [r for r in self.running if r not in decoding]
        budget = self.max_mixed_prefill_tokens if decoding else self.max_prefill_tokens
        for request in decoding:
            if request not in self.running:
                continue  # preempted by one before it
            self._schedule_tokens(step, request, len(request.content) + len(request.draft))
        # Prefills by what their callers have had; a stable sort, so by admission within a caller.
        for request in sorted(reading, key=lambda r: self.served[r.caller]):
            budget -= self._schedule_prefill(step, request, budget) if budget > 0 else 0
        if self.num_preempted > preempted:
            return step  # what was just preempted must not be admitted in the same step
        while budget > 0 and (head := self._next_waiting()) is not None and self._make_room(step, head):
            step.copies += self._admit(head)
            budget -= self._schedule_prefill(step, head, budget)
        return step

    def cache_pages(self, request: R) -> None:
        """Share what is computed: full pages, and at the prompt's end its last page too."""
        at_end = request.num_shared < request.num_prompt <= request.table.length
        self.pages.cache_pages(request.table, request.content, request.table.length, partly=at_end)
        request.num_shared = min(request.table.length, request.num_prompt)

    def truncate(self, request: R, length: int) -> None:
        """Keep only the first `length` tokens of what is computed, as after a rejected draft."""
        self.pages.truncate(request.table, min(length, request.table.length))

    def finish(self, request: R, *, computed: bool = True) -> None:
        """The request has ended; `computed` False where the last step was planned for it, and failed."""
        if request in self.running:
            self.running.remove(request)
            self._release(request, request.table.length if computed else 0)
        else:
            self._remove_waiting(request)
        if not self._has_requests(request.caller):
            self._remove_idle_callers()

    def reset_prefix_cache(self) -> None:
        """Share nothing that was computed before; running requests keep their pages."""
        self.pages.reset_prefix_cache()

    def restart_prompts(self) -> None:
        """Have running requests without a drawn token begin again, so that no prompt is read by two versions of the
        weights."""
        for request in [r for r in self.running if len(r.content) == r.num_prompt]:
            self.running.remove(request)
            self._release(request, 0)
            self._enqueue(request)

    def _is_decoding(self, request: R) -> bool:
        """Whether all of the request but its last token is computed, and no tile has to be encoded first."""
        length = request.table.length
        missing = any(last > length and tile not in request.features for tile, (_, last) in enumerate(request.tiles))
        return length >= len(request.content) - 1 and not missing

    def _schedule_prefill(self, step: Step[R], request: R, budget: int) -> int:
        """Plan tiles and tokens of a prompt for `budget` tokens, which the last tile may exceed; returns what it
        used."""
        if request not in self.running:
            return 0  # preempted by one before it
        begin = request.table.length
        encoded, end = self._schedule_encoding(step, request, begin + budget, budget)
        end = min(end, begin + budget - encoded)
        return encoded + (self._schedule_tokens(step, request, end) if end > begin else 0)

    def _schedule_encoding(self, step: Step[R], request: R, end: int, budget: int) -> tuple[int, int]:
        """Plan the tiles that tokens up to `end` need, for `budget` tokens. Returns the tokens that they count as, and
        up to which token the request can then be computed."""
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

    def _schedule_tokens(self, step: Step[R], request: R, end: int) -> int:
        """Plan the request's tokens up to `end`, fewer at a chunk edge. Returns their number, 0 if pages ran out."""
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
        step.scheduled[request] = ScheduledRequest(request, begin, end)
        new = max(0, end - max(begin, request.num_charged))
        self.served[request.caller] += new
        self.clock += new
        request.num_charged = max(request.num_charged, end)
        return end - begin

    def _preempt(self, step: Step[R], request: R) -> None:
        """Free a running request's pages and put it back in the queue."""
        planned = step.scheduled.pop(request, None)
        step.tiles.pop(request, None)
        self.running.remove(request)
        self._release(request, planned.begin if planned else request.table.length)
        self._enqueue(request)
        self.num_preempted += 1

    def _release(self, request: R, computed: int) -> None:
        """Free the request's pages; the prefix cache keeps what is computed until it is evicted."""
        self.pages.cache_pages(request.table, request.content, computed, partly=True)
        self.pages.release(request.table)
        request.table, request.draft, request.num_shared = BlockTable(), [], 0
        request.features.clear()

    def _next_waiting(self) -> R | None:
        """The request to admit next, without those whose prefix a running request is computing."""
        heads = (
            next((request for request in queue[:MAX_SKIPPED] if not self._is_prefix_in_progress(request)), None)
            for queue in self.waiting.values()
        )
        return min(
            (r for r in heads if r is not None),
            key=lambda r: (self.served[r.caller] - r.priority * HEAD_START, r.arrival),
            default=None,
        )

    def _is_prefix_in_progress(self, request: R) -> bool:
        """Whether a running request is about to compute the page that this one would compute first."""
        return request.reuse and any(self._computes_prefix_of(reader, request) for reader in self.running)

    def _computes_prefix_of(self, reader: R, request: R) -> bool:
        if reader.table.node is None or reader.salt != request.salt or reader.num_shared >= reader.num_prompt:
            return False
        known, size = reader.num_shared, self.pages.size
        soon = min(known - known % size + size, reader.num_prompt, len(request.content) - 1)
        # The last tokens first: where prompts differ at all, they mostly differ there.
        return known < soon and all(
            reader.content[begin:end] == request.content[begin:end] for begin, end in ((known, soon), (0, known))
        )

    def _make_room(self, step: Step[R], request: R) -> bool:
        """Whether the request can be admitted, if need be by preempting requests of lower priority."""
        while len(self.running) >= self.max_num_seqs or not self._has_pages(request):
            lesser = [r for r in self.running if self._is_preemptible(r, request)]
            if not lesser:
                return False
            self._preempt(step, min(reversed(lesser), key=lambda r: r.priority))
        return True

    def _has_pages(self, request: R) -> bool:
        """Whether there are pages for the whole request and one more for every running one, which would otherwise
        preempt it soon."""
        whole, chunk = self.pages.num_pages(len(request.content))
        for other in self.running:
            most_whole, most_chunk = self.pages.num_pages(other.limit)
            whole += most_whole > len(other.table.global_pages)
            chunk += most_chunk > len(other.table.local_pages)
        pools = self.pages.global_pages, self.pages.local_pages
        return all(
            pool.num_free + pool.num_evictable >= needed for pool, needed in zip(pools, (whole, chunk), strict=True)
        )

    def _is_preemptible(self, running: R, request: R) -> bool:
        if running.priority >= request.priority:
            return False
        if running.caller == request.caller:
            return request.arrival < running.arrival
        ahead = self.served[request.caller] - self.served[running.caller]
        return ahead < (request.priority - running.priority) * HEAD_START

    def _admit(self, request: R) -> list[PageCopy]:
        self._remove_waiting(request)
        if request.admission is None:
            request.admission = next(self._admissions)
        self.running.append(request)
        self.running.sort(key=lambda r: r.admission or 0)
        # The last token is computed in any case: the next one is drawn after it.
        limit = len(request.content) - 1 if request.reuse else 0
        copies = self.pages.match_prefix(request.table, request.salt, request.content, limit)
        request.num_cached = request.table.length
        request.num_shared = min(request.num_cached, request.num_prompt)
        return copies

    def _enqueue(self, request: R) -> None:
        queue = self.waiting.setdefault(request.caller, [])
        insort(queue, request, key=lambda r: r.arrival)

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

    def _remove_idle_callers(self) -> None:
        """Forget the counts of callers without requests that are behind all others: `add` would raise them anyway."""
        here = self._callers()
        least = min((self.served[caller] for caller in here), default=None)
        self.served = {
            caller: had for caller, had in self.served.items() if caller in here or (least is not None and had > least)
        }

"""Which pieces of which training documents a run shows, planned from the index of the token shards alone.

The documents of a group (all of them, or those of one source and language where these have weights) are an endless
stream: epoch after epoch, each in an order of its own and cut at other places. A place in the stream is counted in
tokens. Documents are shuffled within pools, so that only a pool of them is looked at to read the stream anywhere: a
pool is made of blocks of neighbouring documents, which are drawn from everywhere. Up to POOL documents are one pool.
"""

# B blocks, D documents of a pool or a slice, P pieces

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from herd.config import PretrainConfig
from herd.core.streams import stream
from herd.data.loading.mixture import Group, allot_tokens, shortfalls, token_shares
from herd.data.tokens.shards import TokenShards

BLOCK = 4096
"""Neighbouring documents that stay in one pool."""
POOL = 2**18
"""Documents that are shuffled among each other, about."""
COLUMN_PART = 2**22
"""Documents whose index is read at a time."""
MORE = 4096
"""Tokens that are looked at beside those that are missing at the end of a run."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Stretches of documents."""

    documents_P: np.ndarray
    begins_P: np.ndarray
    ends_P: np.ndarray

    def __len__(self) -> int:
        return len(self.documents_P)

    @property
    def lengths_P(self) -> np.ndarray:
        return self.ends_P - self.begins_P

    def part(self, where: np.ndarray | slice) -> "Pieces":
        """Some of them."""
        arrays = (self.documents_P, self.begins_P, self.ends_P)
        documents_P, begins_P, ends_P = (array[where] for array in arrays)
        return Pieces(documents_P=documents_P, begins_P=begins_P, ends_P=ends_P)


def join_pieces(parts: Sequence[Pieces]) -> Pieces:
    """One after the other."""
    empty = np.zeros(0, dtype=np.int64)
    return Pieces(
        documents_P=np.concatenate([empty, *(part.documents_P for part in parts)]),
        begins_P=np.concatenate([empty, *(part.begins_P for part in parts)]),
        ends_P=np.concatenate([empty, *(part.ends_P for part in parts)]),
    )


def cut_documents(documents_D: np.ndarray, lengths_D: np.ndarray, first_D: np.ndarray, context: int) -> Pieces:
    """Each document in a piece of at most `first` tokens and then pieces of at most `context`; a single token that is
    left at its end has nothing to predict and is left out."""
    more_D = np.maximum(0, -(-(lengths_D - 1 - first_D) // context))
    count_D = 1 + more_D
    of_P = np.repeat(np.arange(len(documents_D)), count_D)
    number_P = np.arange(len(of_P)) - np.repeat(np.cumsum(count_D) - count_D, count_D)
    begins_P = np.where(number_P == 0, 0, first_D[of_P] + (number_P - 1) * context)
    ends_P = np.minimum(lengths_D[of_P], np.where(number_P == 0, first_D[of_P], begins_P + context))
    return Pieces(documents_P=documents_D[of_P], begins_P=begins_P, ends_P=ends_P)


class BlockTokens:
    """Tokens of an epoch in each block of documents, of each group. A group is what one of the pairs (source, language)
    of indices has; None for a part of a pair stands for all."""

    def __init__(self, shards: TokenShards, pairs: Sequence[tuple[int | None, int | None]]) -> None:
        self.shards, self.pairs = shards, list(pairs)
        self.num_blocks = -(-len(shards) // BLOCK)
        if self.pairs == [(None, None)] and not shards.has_repeats:
            edges = np.minimum(np.arange(self.num_blocks + 1) * BLOCK, len(shards))
            self.tokens = [np.diff(shards.offsets[edges])]
            return
        self.tokens = [np.zeros(self.num_blocks, dtype=np.int64) for _ in self.pairs]
        for begin in range(0, len(shards), COLUMN_PART):
            end = min(begin + COLUMN_PART, len(shards))
            lengths = np.diff(shards.offsets[begin : end + 1]) * self.repeats(begin, end)
            blocks = np.arange(begin, end) // BLOCK - begin // BLOCK
            group_of = self._group_of(begin, end)
            first, count = begin // BLOCK, int(blocks[-1]) + 1
            sums = np.bincount(group_of * count + blocks, weights=lengths, minlength=len(self.pairs) * count)
            for tokens, own in zip(self.tokens, sums.reshape(-1, count)[: len(self.pairs)], strict=True):
                tokens[first : first + count] += own.astype(np.int64)

    def repeats(self, begin: int, end: int) -> np.ndarray:
        """int64, how often each of some documents is in an epoch."""
        if not self.shards.has_repeats:
            return np.ones(end - begin, dtype=np.int64)
        return self.shards.column("repeats")[begin:end].astype(np.int64)

    def _group_of(self, begin: int, end: int) -> np.ndarray:
        """int64, the group of each of some documents; the number of groups where it is in none."""
        sources, languages = self.shards.sources, self.shards.languages
        table = np.full((len(sources), len(languages)), len(self.pairs), dtype=np.int64)
        for number, (source, language) in enumerate(self.pairs):
            table[slice(None) if source is None else source, slice(None) if language is None else language] = number
        return table[self.shards.column("sources")[begin:end], self.shards.column("languages")[begin:end]]

    def documents(self, group: int, blocks: np.ndarray) -> np.ndarray:
        """int64, the documents of a group in some blocks, as often as they are in an epoch."""
        found, (source, language) = [np.zeros(0, dtype=np.int64)], self.pairs[group]
        for block in blocks.tolist():
            begin, end = block * BLOCK, min((block + 1) * BLOCK, len(self.shards))
            documents, repeats = np.arange(begin, end), self.repeats(begin, end)
            if source is not None:
                repeats = repeats * (self.shards.column("sources")[begin:end] == source)
            if language is not None:
                repeats = repeats * (self.shards.column("languages")[begin:end] == language)
            found.append(np.repeat(documents, repeats))
        return np.concatenate(found)


class DocumentStream:
    """The endless stream of a group's documents."""

    def __init__(
        self, blocks: BlockTokens, group: int, *, seed: int, context: int, place: tuple[str, ...] = ()
    ) -> None:
        self.blocks, self.group, self.shards = blocks, group, blocks.shards
        self.seed, self.context, self.place = seed, context, place
        self.own_B = np.flatnonzero(blocks.tokens[group])
        self.tokens_B = blocks.tokens[group][self.own_B]
        self.tokens = int(self.tokens_B.sum())
        self._pools = lru_cache(4)(self._make_pools)
        self._pool = lru_cache(2)(self._make_pool)

    def _make_pools(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The blocks of each pool of an epoch, and where each begins in it."""
        if len(self.shards) <= POOL:
            return [self.own_B], np.zeros(1, dtype=np.int64)
        order = stream(self.seed, "blocks", *self.place, epoch).permutation(len(self.own_B))
        firsts = np.arange(0, len(order), POOL // BLOCK)
        sums = np.add.reduceat(self.tokens_B[order], firsts)
        return [self.own_B[order[at : at + POOL // BLOCK]] for at in firsts], np.cumsum(sums) - sums

    def _make_pool(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The documents of a pool in their order, how much of each its first piece takes, and their lengths."""
        pools, _ = self._pools(epoch)
        rng = stream(self.seed, "texts", *self.place, epoch, *([number] if len(pools) > 1 else []))
        documents_D = self.blocks.documents(self.group, pools[number])
        documents_D = documents_D[rng.permutation(len(documents_D))]
        # The first cut is random from the second epoch on, so that pieces begin elsewhere.
        low = self.context // 4 if epoch else self.context
        first_D = rng.integers(low, self.context + 1, size=len(documents_D))
        return documents_D, first_D, self.shards.lengths(documents_D)

    def pieces(self, begin: int, end: int) -> Pieces:
        """Of all documents that begin from place `begin` up to before `end`."""
        parts = []
        for epoch in range(begin // self.tokens, -(-end // self.tokens)):
            pools, starts = self._pools(epoch)
            starts = starts + epoch * self.tokens
            first = max(0, int(np.searchsorted(starts, begin, side="right")) - 1)
            for number in range(first, int(np.searchsorted(starts, end))):
                documents_D, first_D, lengths_D = self._pool(epoch, number)
                at_D = starts[number] + np.cumsum(lengths_D) - lengths_D
                inside_D = (at_D >= begin) & (at_D < end)
                parts.append(cut_documents(documents_D[inside_D], lengths_D[inside_D], first_D[inside_D], self.context))
        return join_pieces(parts)


class TextPlan:
    """The pieces of a run of `wanted` tokens, or fewer where caps on epochs end it: see `tokens` and `left_out`."""

    def __init__(self, shards: TokenShards, config: PretrainConfig, wanted: int) -> None:
        sources, languages = shards.manifest["sources"], shards.languages
        caps = {name: source["max_epochs"] or config.max_epochs for name, source in sources.items()}
        apart = config.language_temperature != 1 or any(
            source["weight"] != 1 or source["max_epochs"] for source in sources.values()
        )
        names = [(own["source"], own["language"]) for own in shards.manifest["groups"]] if apart else [("", "")]
        pairs = [(shards.sources.index(s), languages.index(lang)) for s, lang in names] if apart else [(None, None)]
        blocks = BlockTokens(shards, pairs)
        groups = [
            Group(
                source=source,
                language=language,
                tokens=int(tokens.sum()),
                weight=sources[source]["weight"] if apart else 1.0,
                max_epochs=caps[source] if apart else config.max_epochs,
            )
            for (source, language), tokens in zip(names, blocks.tokens, strict=True)
        ]
        shares = token_shares(groups, config.language_temperature)
        given = allot_tokens(groups, shares, wanted)
        self.left_out = shortfalls(groups, shares, wanted)
        """What caps on epochs leave out of the shares."""
        self.tokens = wanted if given.sum() > wanted - len(groups) else int(given.sum())
        """What is shown in all."""
        self._parts: list[tuple[int, float, DocumentStream]] = []
        for number, (group, tokens) in enumerate(zip(groups, given.astype(np.int64).tolist(), strict=True)):
            if tokens:
                place = names[number] if apart else ()
                documents = DocumentStream(blocks, number, seed=config.seed, context=config.context, place=place)
                self._parts.append((tokens, group.most_tokens, documents))

    def window(self, begin: float, end: float) -> Pieces:
        """The pieces between two shares of the run."""
        return join_pieces([_pieces_of(*part, begin, end) for part in self._parts])


def _pieces_of(tokens: int, most_tokens: float, documents: DocumentStream, begin: float, end: float) -> Pieces:
    first, last = round(tokens * begin), round(tokens * end)
    pieces = documents.pieces(first, last)
    if end < 1:
        return pieces
    # The run ends with the piece that reaches what was asked for. Ends of documents that are left out are made up for.
    while (missing := tokens - first - int(pieces.lengths_P.sum())) > 0 and last < most_tokens:
        more = int(min(missing + MORE, most_tokens - last))
        pieces = join_pieces([pieces, documents.pieces(last, last + more)])
        last += more
    return pieces.part(np.cumsum(pieces.lengths_P) - pieces.lengths_P < tokens - first)

"""The batches that a guard is trained on: messages under one policy each, whose common beginning is computed once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby, takewhile

import numpy as np
import torch
from torch import Tensor

from herd import native
from herd.config.guard import GuardConfig
from herd.core.batch import Batch
from herd.core.metrics import Mean, Number
from herd.core.streams import stream
from herd.data.loading.pack import Sample, pack
from herd.data.media.image import ImageProcessor
from herd.data.tasks.safety.items import Item, make_item, one_of, topic_item, topics
from herd.data.tasks.safety.pictured import Drawings, PicturedItem
from herd.data.tokens.chat import render_messages
from herd.data.tokens.tokenizer import Tokenizer
from herd.guard.examples import Judged
from herd.guard.policies import make_policy, names_topics, violated
from herd.guard.prompt import frame, guard_messages, reply_of, text_part
from herd.guard.taxonomy import HAZARDS, Taxonomy
from herd.model.parallel import ALONE, Parallel
from herd.model.transformer import Transformer
from herd.train.losses import cross_entropy, cross_entropy_metrics
from herd.train.sharing import share_prompts


@dataclass(frozen=True, kw_only=True)
class GuardBatch(Batch):
    """Judged messages, a document each."""

    prompts_N: Tensor
    """int64, of the tokens that a document begins with as its neighbours do the number of its group, -1 elsewhere."""


class GuardBatches:
    """Batch s is a function of (config, s): generated items, and the user's examples."""

    unit = "tokens"

    def __init__(
        self,
        config: GuardConfig,
        tokenizer: Tokenizer,
        processor: ImageProcessor,
        *,
        examples: Sequence[Judged] = (),
        policy: Taxonomy = HAZARDS,
        drawings: Drawings | None = None,
    ) -> None:
        """`policy` is the one of the examples."""
        self._config, self._tokenizer, self._processor = config, tokenizer, processor
        self._examples, self._policy, self._drawings = examples, policy, drawings
        self.num_steps = -(-config.num_items // config.batch_items)

    def batch(self, step: int) -> GuardBatch:
        """The batch of step `step`. Where topics are categories too, three of four of its items are of a topic."""
        config = self._config
        first = step * config.batch_items
        size = min(config.batch_items, config.num_items - first)
        policy, named = make_policy(config.seed, "train", step)
        rng = stream(config.seed, "guard examples", step)
        own = int(rng.binomial(size, config.examples_share)) if self._examples else 0
        if own:  # under their own policy: what another one says of them is not known
            policy, named = self._policy, {}
        chosen = [self._examples[int(index)] for index in rng.choice(max(len(self._examples), 1), size=own)]
        drawn = int(rng.binomial(size - own, config.pictures_share)) if self._drawings else 0
        if self._drawings:
            chosen += [
                pictured(self._drawings.item(config.seed, "train", first + i), policy, named, rng) for i in range(drawn)
            ]
        of_topics, naming = names_topics(named), step < round(config.naming_share * self.num_steps)
        made = (
            self._about(first + i, named)
            if of_topics and i % 4
            else self._item(first + i, unsafe=naming and bool(i % 4))
            for i in range(drawn, size - own)
        )
        return self.pack([*chosen, *(judged_item(one, policy, named) for one in made)], policy)

    def _item(self, number: int, *, unsafe: bool) -> Item:
        """The item with this number; with `unsafe` the next one of its line that is, with numbers that no other has."""
        numbers = count(number, self._config.num_items)
        return next(item for at in numbers if (item := make_item(self._config.seed, "train", at)).codes or not unsafe)

    def _about(self, number: int, named: Mapping[str, str]) -> Item:
        """A request of a topic that is a category of the policy, or as often of one that is none."""
        rng = stream(self._config.seed, "guard topic", number)
        asked = bool(rng.integers(2))
        among = [one for one in topics("train") if any(name in named for name in one.first_names) is asked]
        return topic_item(one_of(among, rng), "train", rng)

    def pack(self, chosen: Sequence[Judged], policy: Taxonomy) -> GuardBatch:
        """Messages as a batch, those whose prompts begin alike together."""
        samples: list[Sample] = []
        prompts: list[np.ndarray] = []

        def head(one: Judged) -> str:
            return frame(one.role, policy, self._config.form)[0]

        for number, (_, of) in enumerate(groupby(sorted(chosen, key=head), key=head)):
            rendered = [self._render(one, policy) for one in of]
            shared = common_length([self._words(sample.ids) for sample in rendered])
            samples += rendered
            prompts += [np.where(np.arange(len(one.ids)) < shared, number, -1) for one in rendered]
        packed = pack(samples, patch_id=self._tokenizer.ids.patch)
        return GuardBatch(**vars(packed), prompts_N=torch.from_numpy(np.concatenate(prompts)))

    def _words(self, ids: np.ndarray) -> np.ndarray:
        """The tokens before the first picture: what follows may look alike and show something else."""
        patches = np.flatnonzero(ids == self._tokenizer.ids.patch)
        return ids[: patches[0]] if len(patches) else ids

    def _render(self, one: Judged, policy: Taxonomy) -> Sample:
        messages = guard_messages(one.parts, one.role, policy, one.before, form=self._config.form)
        reply = {"role": "assistant", "content": reply_of(one.codes)}
        made = render_messages(self._tokenizer, self._processor, [*messages, reply], add_generation_prompt=False)
        return Sample(
            ids=np.array(made.ids, dtype=np.int32), learnt=np.array(made.learnt), kind="chat", tiles=made.tiles
        )


def judged_item(item: Item, policy: Taxonomy, named: Mapping[str, str]) -> Judged:
    """A generated item under a policy."""
    codes = violated((*item.codes, *item.topics), policy, named)
    return Judged(parts=[text_part(item.text)], role=item.role, before=item.before, codes=codes)


def pictured(item: PicturedItem, policy: Taxonomy, named: Mapping[str, str], views: np.random.Generator) -> Judged:
    """An item with random views of its drawings, under a policy."""
    return Judged(parts=item.parts(views=views), role="user", codes=violated(item.codes, policy, named))


def common_length(documents: Sequence[np.ndarray]) -> int:
    """Tokens with which all documents begin alike; 0 of a single one. The last token of each is never among them."""
    if len(documents) < 2:
        return 0
    shortest = min(map(len, documents)) - 1
    rows = np.stack([one[:shortest] for one in documents])
    return len(list(takewhile(bool, (rows == rows[0]).all(0))))


def guard_loss(parallel: Parallel = ALONE) -> Callable[[Transformer, Batch], tuple[Tensor, dict[str, Number | Mean]]]:
    """The mean cross-entropy of the answers' tokens; of several messages what they begin with is computed once."""

    def loss_fn(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, Number | Mean]]:
        assert isinstance(batch, GuardBatch)
        device = model.embedding.weight.device
        # The kernel needs no padding and is faster with each document by itself.
        once = native.why_not(model.embedding.weight, native.ATTENTION) is not None
        sharing = None
        if not parallel.is_distributed:
            sharing = share_prompts(batch.prompts_N, batch.starts_S, device, attention=once)
        hidden_ND = model(
            batch.tokens_N,
            positions_N=batch.positions_N,
            starts_S=batch.starts_S,
            images=batch.images,
            sharing=sharing,
        )
        mean, losses_N = cross_entropy(hidden_ND, model.unembedding.weight, batch.targets_N, batch.shares_N)
        return mean, cross_entropy_metrics(losses_N, batch)

    return loss_fn

"""`herd vision`: the vision encoder of a model learns pictures from their names, before the model learns language.

Two losses, for a shelf of pictures that is small enough to hold every name at once. As in SuperClass (arXiv 2411.03313)
a tile's features predict the tokens of its names, as a bag, through the language model's own norm and unembedding. And
in the manner of MetaCLIP (arXiv 2309.16671) they are drawn to the thing's own names and pushed from all others, by the
same logits: a name's score is the mean of its tokens'. So the encoder learns the output space of the language model.

Each of a tile's tokens predicts names in some of the languages: one vector of a small model's width cannot hold the
names in all of them apart. Encoder and unembedding are trained; everything else stays as it was.
"""

# B pictures of a batch, P things with names, Q tokens of a tile, V vocabulary, D width

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from herd.config import LANGUAGES, VisionStageConfig
from herd.core.device import choose_device
from herd.core.lineage import Stage
from herd.core.metrics import Number
from herd.core.streams import seed_of, stream
from herd.data.loading.picture_shelf import PictureShelf
from herd.data.media.image import ImageProcessor, normalise
from herd.data.tokens.formats import with_picture_tokens
from herd.data.tokens.tokenizer import Tokenizer
from herd.errors import HerdError
from herd.model.adopt import with_encoder
from herd.model.formats import huggingface
from herd.model.formats.source import find_source
from herd.model.formats.weights import Weights, assemble
from herd.model.transformer import Transformer
from herd.stages.model_folder import report_left_out, save_model
from herd.train.dtype import training_dtype
from herd.train.loop import train
from herd.train.losses import cross_entropy
from herd.train.trainable import set_trainable


@dataclass(frozen=True, kw_only=True)
class Views:
    """One contrastive batch."""

    tiles: Tensor
    """Normalised pixels of one tile a picture, [B, 3, side, side]."""
    thing_B: Tensor
    """Which of the shelf's things each one shows."""

    @property
    def size(self) -> int:
        """What the rate counts: pictures."""
        return len(self.tiles)


class VisionBatches:
    """Random views of all training pictures, epoch after epoch."""

    unit = "pictures"

    def __init__(self, shelf: PictureShelf, config: VisionStageConfig) -> None:
        self.config, self.shelf = config, shelf
        count = len(shelf.thing_of)
        epochs = -(-config.num_views // max(count, 1))
        order = [stream(config.seed, "epoch", epoch).permutation(count) for epoch in range(epochs)]
        self.order = np.concatenate(order or [np.zeros(0, dtype=np.int64)])[: config.num_views]
        self.num_steps = len(self.order) // config.batch_pictures

    def batch(self, step: int) -> Views:
        """The batch of step `step`."""
        begin = step * self.config.batch_pictures
        chosen = self.order[begin : begin + self.config.batch_pictures]
        tiles = [
            self.shelf.tiles(int(index), stream(self.config.seed, "view", begin + row), whole=True).pixels
            for row, index in enumerate(chosen)
        ]
        return Views(tiles=normalise(torch.cat(tiles)), thing_B=torch.from_numpy(self.shelf.thing_of[chosen]))


def name_weights(names: list[dict[str, list[int]]], vocab_size: int, num_tokens: int) -> Tensor:
    """[Q * P, V] sparse: what token q of a tile predicts, the names in languages q, q + Q, q + 2 Q … of LANGUAGES.

    A thing's languages weigh the same, and the tokens of a name in one language too. A thing without a name in any
    of a token's languages is called there what it is called in the others.
    """
    rows, columns, values = [], [], []
    for token in range(num_tokens):
        for thing, every in enumerate(names):
            spoken = {lang: every[lang] for lang in LANGUAGES[token::num_tokens] if lang in every} or every
            for ids in spoken.values():
                rows += [token * len(names) + thing] * len(ids)
                columns += ids
                values += [1 / (len(spoken) * len(ids))] * len(ids)
    index, size = torch.tensor([rows, columns]), (num_tokens * len(names), vocab_size)
    return torch.sparse_coo_tensor(index, values, size, check_invariants=True).coalesce()


def contrastive_loss(
    hidden_BQD: Float[Tensor, "b q d"],
    names_QPD: Float[Tensor, "q p d"],
    own_B: Int[Tensor, "b"],
    group_P: Int[Tensor, "p"],
    logit_scale: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean over b, q of -log softmax_p(logit_scale * <hidden_bq, names_qp>)_own(b).

    Also the share of pictures whose own names score highest, by the sum over q.

    Things of one `group_P` have a name in common: they are no negatives of each other. fp32.
    """
    score_QBP = hidden_BQD.float().transpose(0, 1) @ names_QPD.float().mT
    things_P = torch.arange(len(group_P), device=group_P.device)
    twins_BP = (group_P[own_B, None] == group_P) & (own_B[:, None] != things_P)
    score_QBP = score_QBP.masked_fill(twins_BP, float("-inf"))
    accuracy = (score_QBP.sum(0).argmax(-1) == own_B).float().mean()
    return F.cross_entropy((logit_scale * score_QBP).flatten(0, 1), own_B.repeat(hidden_BQD.shape[1])), accuracy


def naming_loss(
    hidden_RD: Float[Tensor, "r d"], unembedding_VD: Float[Tensor, "v d"], names_RD: Float[Tensor, "r d"]
) -> Float[Tensor, ""]:
    """Mean over rows of -sum_v weight_v * log softmax(U h)_v: the tokens of a name, as a bag.

    `names_RD` are the bags: each row the sum of its tokens' rows of U, by weights that sum to 1.
    """
    # log-sum-exp minus the bag's mean logit; the former is the cross-entropy of any one token plus its logit.
    any_R = torch.zeros(len(hidden_RD), dtype=torch.int64, device=hidden_RD.device)
    weights_R = torch.full((len(hidden_RD),), 1 / len(hidden_RD), device=hidden_RD.device)
    mean, _ = cross_entropy(hidden_RD, unembedding_VD, any_R, weights_R)
    return mean + (hidden_RD.float() * (unembedding_VD[0].float() - names_RD)).sum(-1).mean()


def begin_with(folder: Path, weights: Weights, tokenizer: Tokenizer, seed: int) -> tuple[Weights, Tokenizer]:
    """The model with the encoder of the model folder `folder`, but for the projector, and its tokenizer. A model that
    reads text alone gets a new projector, and tokens for pictures. Raises HerdError where the shapes differ."""
    theirs = find_source(folder).weights()
    shape = theirs.config.vision
    if shape is None:
        raise HerdError(f"encoder={folder}: that model has none")
    if weights.config.vision is None:
        tokenizer, special = with_picture_tokens(tokenizer, weights.config.special)
        generator = torch.Generator().manual_seed(seed_of(seed, "projector"))
        weights = with_encoder(weights, shape, special, tokenizer.vocab_size, generator)
    own = weights.config.vision
    if own is None or replace(shape, max_tiles=own.max_tiles) != own:
        raise HerdError(f"encoder={folder}: its encoder is {shape}, the model's is {own}")
    read = weights.read

    def of_either(name: str) -> Tensor:
        begun = name.startswith("vision.") and not name.startswith("vision.projector.")
        return theirs.read(name) if begun else read(name)

    return replace(weights, read=of_either, stored=None), tokenizer


def vision(config: VisionStageConfig, model: Path, data: Path, out: Path) -> Path:
    """Train the encoder of the model folder `model`; returns the finished folder `out`."""
    stage = Stage("vision", out, config=config, parents={"model": model, "data": data, **config.inputs()})
    device = choose_device()
    weights = huggingface.open_folder(model)
    tokenizer = Tokenizer.load(model, ids=weights.config.special)
    if config.encoder:
        weights, tokenizer = begin_with(config.inputs()["encoder"], weights, tokenizer, config.seed)
    if weights.config.vision is None:
        raise HerdError(
            f"{model} has no vision encoder: leave the vision stage out, give a model that has one, or take that of "
            "another model (--encoder)"
        )
    network = assemble(weights, dtype=training_dtype(config.dtype, stage), device=device)
    shape = network.config
    set_trainable(network, config.trainable)

    processor = ImageProcessor(shape.vision)
    shelf = PictureShelf(data, processor)
    left_out = {"pictures without a name": nameless} if (nameless := len(shelf.rows) - shelf.rows.num_named) else {}
    batches = VisionBatches(shelf, config)
    if not batches.num_steps:
        raise HerdError(
            f"{data} has {shelf.rows.num_named} training pictures with names: num_views={config.num_views} of them "
            f"make no batch of batch_pictures={config.batch_pictures}; lower that, or give a data folder with pictures"
        )
    facts = report_left_out(left_out, stage)
    names = [{lang: tokenizer.encode(name) for lang, name in names.items()} for names in shelf.things]
    num_tokens = processor.config.tokens_per_tile
    weights_RV = name_weights(names, shape.vocab_size, num_tokens).to(device)
    first_names = [str(min(name.items())) for name in shelf.things]
    group_P = torch.from_numpy(np.unique(first_names, return_inverse=True)[1]).to(device)

    def loss_fn(model: Transformer, batch: Views) -> tuple[Tensor, dict[str, Number]]:
        assert model.vision is not None
        hidden_BQD = model.norm(model.vision(batch.tiles.to(model.unembedding.weight.dtype)))
        names_QPD = torch.sparse.mm(weights_RV, model.unembedding.weight.float()).unflatten(0, (num_tokens, -1))
        drawn, accuracy = contrastive_loss(hidden_BQD, names_QPD, batch.thing_B, group_P, config.logit_scale)
        own_RD = names_QPD[:, batch.thing_B].transpose(0, 1).flatten(0, 1)
        spoken = naming_loss(hidden_BQD.flatten(0, 1), model.unembedding.weight, own_RD)
        figures = {"contrastive_loss": drawn, "naming_loss": spoken, "contrastive_accuracy": accuracy}
        return drawn + spoken, {name: figure.detach() for name, figure in figures.items()}

    train(network, batches, loss_fn, config, stage)
    return save_model(network, tokenizer, stage, facts=lambda _: facts)

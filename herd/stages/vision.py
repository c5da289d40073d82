"""`herd vision`: a new model whose vision encoder already knows pictures from their names.

In the manner of MetaCLIP (arXiv 2309.16671), for a shelf small enough to hold every name at once: a picture's mean
feature is drawn to its own names and pushed from those of all other pictures. The text side is the mean of the language
model's token embeddings over a picture's names in all languages, so that the encoder learns to speak in the space that
the language model reads. Everything else in the new folder is at its first weights; `herd pretrain` goes on from there.
"""

# B pictures of a batch, P pictures in all, V vocabulary, D width

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from herd.config import VisionStageConfig, preset
from herd.core.lineage import Stage
from herd.core.streams import seed_of, stream
from herd.data.image import ImageProcessor, normalise
from herd.data.loader import PictureShelf
from herd.data.tokenizer import Tokenizer
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.stages.pretrain import save_model
from herd.train.loop import train


@dataclass(frozen=True, kw_only=True)
class Views:
    """One contrastive batch."""

    tiles: Tensor
    """Normalised pixels of one tile a picture, [B, 3, side, side]."""
    picture_B: Tensor
    """Which picture of the shelf each one shows."""

    @property
    def size(self) -> int:
        """What the rate counts: pictures."""
        return len(self.tiles)


class VisionBatches:
    """Random views of all training pictures, epoch after epoch."""

    unit = "pictures"

    def __init__(self, shelf: PictureShelf, config: VisionStageConfig) -> None:
        self.config, self.shelf = config, shelf
        count = len(shelf.rows)
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
        return Views(tiles=normalise(torch.cat(tiles)), picture_B=torch.from_numpy(chosen))


def name_weights(names: list[dict[str, list[int]]], vocab_size: int) -> Tensor:
    """[P, V] sparse: a picture's languages weigh the same, and the tokens of a name in one language too."""
    rows, columns, values = [], [], []
    for row, languages in enumerate(names):
        for ids in languages.values():
            rows += [row] * len(ids)
            columns += ids
            values += [1 / (len(languages) * len(ids))] * len(ids)
    index = torch.tensor([rows, columns])
    return torch.sparse_coo_tensor(index, values, (len(names), vocab_size), check_invariants=True).coalesce()


def contrastive_loss(
    pictures_BD: Float[Tensor, "b d"],
    names_PD: Float[Tensor, "p d"],
    own_B: Int[Tensor, "b"],
    group_P: Int[Tensor, "p"],
    sharpness: float,
) -> tuple[Float[Tensor, ""], float]:
    """Mean of -log softmax_j(sharpness * cos(picture_i, names_j))_own(i), and the share whose own names are nearest.

    Pictures of one `group_P` have the same name: they are no negatives of each other. fp32.
    """
    similarity_BP = F.normalize(pictures_BD.float(), dim=-1) @ F.normalize(names_PD.float(), dim=-1).T
    twins_BP = (group_P[own_B, None] == group_P) & (own_B[:, None] != torch.arange(len(group_P)))
    logits_BP = (sharpness * similarity_BP).masked_fill(twins_BP, float("-inf"))
    nearest = (logits_BP.argmax(-1) == own_B).float().mean()
    return F.cross_entropy(logits_BP, own_B), float(nearest)


def vision(config: VisionStageConfig, data: Path, out: Path) -> Path:
    """Make a new model of shape `config.preset` and train its encoder; returns the finished folder `out`."""
    stage = Stage("vision", out, config=config, parents={"data": data})
    tokenizer = Tokenizer.load(data / "tokenizer")
    shape = preset(config.preset, vocab_size=tokenizer.vocab_size, special=tokenizer.ids)
    model = Transformer(shape).to(torch.bfloat16)
    initialise(model, torch.Generator().manual_seed(seed_of(config.seed, "weights")))
    # Gradients only where the loss reaches: the encoder and the embedding.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("vision.", "embedding.")))

    processor = ImageProcessor(shape.vision)
    shelf = PictureShelf(data, processor)
    names = [{lang: tokenizer.encode(" " + name) for lang, name in names.items()} for names in shelf.names]
    weights_PV = name_weights(names, shape.vocab_size)
    first_names = [str(min(name.items())) for name in shelf.names]
    group_P = torch.from_numpy(np.unique(first_names, return_inverse=True)[1])

    def loss_fn(model: Transformer, batch: Views) -> tuple[Tensor, dict[str, object]]:
        pictures_BD = model.vision(batch.tiles.to(torch.bfloat16)).mean(1)
        names_PD = torch.sparse.mm(weights_PV, model.embedding.weight.float())
        loss, nearest = contrastive_loss(pictures_BD, names_PD, batch.picture_B, group_P, config.sharpness)
        return loss, {"nearest": nearest}

    train(model, VisionBatches(shelf, config), loss_fn, config, stage)
    with torch.no_grad():
        # What lies near a name's embedding is likely at first: the features then already speak a little.
        model.unembedding.weight.copy_(0.02 * model.embedding.weight)
    return save_model(model, tokenizer, stage)

"""`herd vision`: a new model whose vision encoder already knows pictures from their names.

MetaCLIP-style (arXiv 2309.16671): a picture's mean feature is drawn to its own names and pushed from the other names
of the batch. The text side is the mean of the language model's token embeddings over the picture's names in several
languages, so that the encoder learns to speak in the space that the language model reads. Everything else in the new
folder is at its first weights; `herd pretrain` goes on from there.
"""

# B pictures, W tokens of their names, D width

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
class NamedPictures:
    """One contrastive batch."""

    tiles: Tensor
    """Normalised pixels of one tile a picture, [B, 3, side, side]."""
    tokens_W: Tensor
    """The names' tokens, picture after picture."""
    owner_W: Tensor
    """The picture that each token names."""
    weights_W: Tensor
    """So that every picture's names weigh the same."""

    @property
    def size(self) -> int:
        """What the rate counts: pictures."""
        return len(self.tiles)


class VisionBatches:
    """Random views of all training pictures, epoch after epoch."""

    unit = "pictures"

    def __init__(
        self, folder: Path, config: VisionStageConfig, tokenizer: Tokenizer, processor: ImageProcessor
    ) -> None:
        self.config = config
        self.shelf = PictureShelf(folder, processor)
        self.names = [
            {language: tokenizer.encode(" " + name) for language, name in names.items()} for names in self.shelf.names
        ]
        count = len(self.shelf.rows)
        epochs = -(-config.num_views // max(count, 1))
        order = [stream(config.seed, "epoch", epoch).permutation(count) for epoch in range(epochs)]
        self.order = np.concatenate(order or [np.zeros(0, dtype=np.int64)])[: config.num_views]
        self.num_steps = len(self.order) // config.batch_pictures

    def batch(self, step: int) -> NamedPictures:
        """The batch of step `step`."""
        begin = step * self.config.batch_pictures
        tiles, tokens, owners, weights = [], [], [], []
        for row, index in enumerate(self.order[begin : begin + self.config.batch_pictures]):
            rng = stream(self.config.seed, "view", begin + row)
            tiles.append(self.shelf.tiles(int(index), rng, whole=True).pixels)
            names = self.names[index]
            languages = sorted(names)
            chosen = rng.permutation(len(languages))[: self.config.names_a_picture]
            for language in (languages[i] for i in chosen):
                ids = names[language]
                tokens += ids
                owners += [row] * len(ids)
                weights += [1 / (len(chosen) * len(ids))] * len(ids)
        return NamedPictures(
            tiles=normalise(torch.cat(tiles)),
            tokens_W=torch.tensor(tokens),
            owner_W=torch.tensor(owners),
            weights_W=torch.tensor(weights),
        )


def contrastive_loss(
    pictures_BD: Float[Tensor, "b d"], names_BD: Float[Tensor, "b d"], sharpness: float
) -> tuple[Float[Tensor, ""], float]:
    """Mean of -log softmax(sharpness * cos(picture_i, name_j))_ii over rows and over columns, and the share of rows
    whose own name is the nearest. fp32."""
    similarity_BB = F.normalize(pictures_BD.float(), dim=-1) @ F.normalize(names_BD.float(), dim=-1).T
    own_B = torch.arange(len(similarity_BB))
    logits_BB = sharpness * similarity_BB
    loss = (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2
    return loss, float((similarity_BB.argmax(-1) == own_B).float().mean())


def name_vectors(embedding_VD: Tensor, tokens_W: Int[Tensor, "w"], owner_W: Tensor, weights_W: Tensor) -> Tensor:
    """Weighted mean of token embeddings by owner, [B, D]. fp32."""
    rows_WD = embedding_VD[tokens_W].float() * weights_W[:, None]
    return rows_WD.new_zeros(int(owner_W.max()) + 1, embedding_VD.shape[1]).index_add(0, owner_W, rows_WD)


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

    def loss_fn(model: Transformer, batch: NamedPictures) -> tuple[Tensor, dict[str, object]]:
        pictures_BD = model.vision(batch.tiles.to(torch.bfloat16)).mean(1)
        names_BD = name_vectors(model.embedding.weight, batch.tokens_W, batch.owner_W, batch.weights_W)
        loss, nearest = contrastive_loss(pictures_BD, names_BD, config.sharpness)
        return loss, {"nearest": nearest}

    train(model, VisionBatches(data, config, tokenizer, ImageProcessor(shape.vision)), loss_fn, config, stage)
    return save_model(model, tokenizer, stage)

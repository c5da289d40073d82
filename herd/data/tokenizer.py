"""Byte-level BPE with Llama 4's split pattern and special tokens.

Text never becomes a control token unasked: `encode("<|eot|>")` gives the bytes of that text. Wraps the `tokenizers`
library, whose tokenizer.json transformers opens as it stands.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from herd.config import SpecialIds
from herd.core.errors import HerdError
from herd.core.files import write_atomic, write_json

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|step|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|finetune_right_pad|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
    "<|reasoning_thinking_start|>",
    "<|reasoning_thinking_end|>",
)
"""Llama 4's named special tokens in their order; its reserved ones (2,027 more) would only swell a small vocabulary."""

PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""The split before BPE of the released tokenizer."""


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, backend: Backend) -> None:
        # Two views: one that sees special tokens as text (the default), the backend itself sees them as tokens.
        self._marked = backend
        self._plain = Backend.from_str(backend.to_str())
        self._plain.encode_special_tokens = True
        self.vocab_size = backend.get_vocab_size()
        found = {token: backend.token_to_id(token) for token in SPECIAL_TOKENS}
        missing = [token for token, index in found.items() if index is None]
        if missing:
            raise HerdError(f"the tokenizer lacks the special tokens {', '.join(missing)}")
        self.special: dict[str, int] = {token: index for token, index in found.items() if index is not None}

    @property
    def ids(self) -> SpecialIds:
        """The special ids that config.json names."""
        return SpecialIds(
            bos=self.special["<|begin_of_text|>"],
            end_of_text=self.special["<|end_of_text|>"],
            eom=self.special["<|eom|>"],
            eot=self.special["<|eot|>"],
            pad=self.special["<|finetune_right_pad|>"],
            image_start=self.special["<|image_start|>"],
            image_end=self.special["<|image_end|>"],
            patch=self.special["<|patch|>"],
        )

    def encode(self, text: str, *, allowed_special: frozenset[str] = frozenset()) -> list[int]:
        """Ids of `text`; only the tokens in `allowed_special` are read as control tokens."""
        if not allowed_special:
            return list(self._plain.encode(text, add_special_tokens=False).ids)
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, sorted(allowed_special))) + ")", text):
            ids += [self.special[part]] if part in allowed_special else self.encode(part)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        return [list(e.ids) for e in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no whole character become U+FFFD."""
        return str(self._marked.decode(ids, skip_special_tokens=skip_special))

    def save(self, folder: Path) -> None:
        """tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "tokenizer.json", self._marked.to_str())
        names = {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot|>",
            "pad_token": "<|finetune_right_pad|>",
        }
        write_json(folder / "special_tokens_map.json", names)
        write_json(
            folder / "tokenizer_config.json",
            {
                **names,
                "tokenizer_class": "PreTrainedTokenizerFast",
                "processor_class": "Llama4Processor",
                "clean_up_tokenization_spaces": False,
                "model_input_names": ["input_ids", "attention_mask"],
            },
        )
        template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
        write_atomic(folder / "chat_template.jinja", template)

    @staticmethod
    def load(folder: Path) -> "Tokenizer":
        """Open the tokenizer of a model or data folder."""
        path = folder / "tokenizer.json"
        if not path.exists():
            raise HerdError(f"{path} is missing: is {folder} a complete folder?")
        try:
            return Tokenizer(Backend.from_file(str(path)))
        except HerdError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise HerdError(f"{path} is not a readable tokenizer ({error})") from None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges on `texts`; `vocab_size` counts bytes, merges and special tokens."""
    backend = Backend(models.BPE(byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    bos = "<|begin_of_text|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return Tokenizer(backend)

"""Byte-level BPE with Llama 4's split pattern and special tokens: trained here, or the released one.

Text never becomes a control token unasked: `encode("<|eot|>")` gives the bytes of that text. Wraps the `tokenizers`
library, whose tokenizer.json transformers opens as it stands. Id for id Meta's tokenizer (llama-models 0.3.0), its
cuts of very long text included.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from herd.config import SpecialIds
from herd.core.files import read_json, write_atomic, write_json
from herd.data.tokens.tiktoken import byte_letters, read_tiktoken, special_tokens
from herd.errors import HerdError

PICTURE_TOKENS = (
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
)
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
    *PICTURE_TOKENS,
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

MAX_CHARS = 400_000
MAX_RUN = 25_000
"""Meta's tokenizer cuts text after so many characters, and after so many in a row with or without white space. The cut
bounds the work on a long row, and shows in the ids: a merge never crosses it."""

GUARD = "\ufdd0"
"""What chat_template.jinja puts inside `<|` of a message. The whole conversation is one string there, whose control
tokens are found first; the saved tokenizer then drops the guard, and the rest is text. Unicode keeps this code point
for internal use."""
_UNGUARD = {"type": "Replace", "pattern": {"String": f"<{GUARD}|"}, "content": "<|"}


_LETTER_BYTES = {letter: byte for byte, letter in enumerate(byte_letters())}

LLAMA_4_NAMES = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot|>",
    "pad_token": "<|finetune_right_pad|>",
}
"""The offices that special_tokens_map.json gives to tokens."""


class Tokenizer:
    """Text to ids and back.

    Of a model that does not speak Llama 4's format, `template` is its own chat template, and `names` its tokens by
    office (`bos_token`, `eos_token`, …).
    """

    def __init__(
        self,
        backend: Backend,
        *,
        template: str | None = None,
        names: dict[str, str] | None = None,
        ids: SpecialIds | None = None,
    ) -> None:
        """`ids` are those that the model's config.json names; without them Llama 4's."""
        self._backend, self._ids = backend, ids
        self._backend.encode_special_tokens = True  # as text
        self.vocab_size = backend.get_vocab_size()
        self.template, self.names = template, names or LLAMA_4_NAMES
        added = backend.get_added_tokens_decoder()
        self.special: dict[str, int] = {str(token): index for index, token in added.items() if token.special}
        missing = [token for token in SPECIAL_TOKENS if token not in self.special]
        if missing and template is None:
            raise HerdError(f"the tokenizer lacks the special tokens {', '.join(missing)}")

    def __reduce__(self) -> Any:
        """Pickled by way of `__init__`: the library's own pickle would read special tokens in a text as such."""
        return partial(Tokenizer, template=self.template, names=self.names, ids=self._ids), (self._backend,)

    @property
    def ids(self) -> SpecialIds:
        """The special ids that config.json names."""
        if self._ids is not None:
            return self._ids
        assert self.template is None, "of another format than Llama 4's, config.json tells them: see Tokenizer.load"
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

    @property
    def stop_tokens(self) -> list[str]:
        """The tokens that end an answer."""
        return [token for token in map(self._backend.id_to_token, self.ids.stop) if token is not None]

    def encode(self, text: str, *, allowed_special: frozenset[str] = frozenset()) -> list[int]:
        """Ids of `text`; only the tokens in `allowed_special` are read as control tokens.

        Half of a surrogate pair, which is no character, becomes U+FFFD.
        """
        if not allowed_special:
            return self.encode_batch([text])[0]
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, sorted(allowed_special))) + ")", text):
            ids += [self.special[part]] if part in allowed_special else self.encode(part)
        return ids

    @cached_property
    def _marked(self) -> Backend:
        return Backend.from_str(self._backend.to_str())

    def encode_marked(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text of our own making, in which every control token is meant as such; and where each begins."""
        encoded = self._marked.encode(text, add_special_tokens=False)
        return list(encoded.ids), [begin for begin, _ in encoded.offsets]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        cut = [bounded(whole(text)) for text in texts]
        pieces = [piece for parts in cut for piece in parts]
        encoded = iter(self._backend.encode_batch_fast(pieces, add_special_tokens=False))
        return [[index for _ in parts for index in next(encoded).ids] for parts in cut]

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no whole character become U+FFFD."""
        return str(self._backend.decode(ids, skip_special_tokens=skip_special))

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether each token is some bytes, wherever it stands."""
        decoder = self._backend.decoder
        return decoder is not None and json.loads(decoder.__getstate__())["type"] == "ByteLevel"

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.special.values())

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token as the library writes it, and its id."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def token_bytes(self, index: int) -> bytes:
        """What one token stands for; the name of a special one. Of a tokenizer that is not of bytes, its text alone.

        A row that an embedding has to spare stands for nothing.
        """
        token = self._backend.id_to_token(index)
        if token is None:
            return b""
        if index in self.special_ids:
            return token.encode()
        if not self.is_byte_level:
            return self.decode([index]).encode()
        try:
            return bytes(map(_LETTER_BYTES.__getitem__, token))
        except KeyError:  # an added token is written as it is
            return token.encode()

    def with_special(self, tokens: Sequence[str]) -> "Tokenizer":
        """The same tokenizer with more special tokens, behind all others."""
        backend = Backend.from_str(self._backend.to_str())
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
        return Tokenizer(backend, template=self.template, names=self.names, ids=self._ids)

    def with_ids(self, ids: SpecialIds) -> "Tokenizer":
        """The same tokenizer for a model that has other special ids."""
        return Tokenizer(self._backend, template=self.template, names=self.names, ids=ids)

    @property
    def document(self) -> dict[str, Any]:
        """What tokenizer.json holds."""
        document: dict[str, Any] = json.loads(self._backend.to_str())
        return document

    @property
    def chat_template(self) -> str:
        """The model's own, or that of Llama 4's format."""
        own = Path(__file__).with_name("chat_template.jinja")
        return own.read_text(encoding="utf-8") if self.template is None else self.template

    def save(self, folder: Path) -> None:
        """tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja."""
        folder.mkdir(parents=True, exist_ok=True)
        document = self.document
        if self.template is None:
            # Only for programs that use the template; here a conversation is never one string.
            document["normalizer"] = document["normalizer"] or _UNGUARD
        write_atomic(folder / "tokenizer.json", json.dumps(document, ensure_ascii=False))
        write_json(folder / "special_tokens_map.json", self.names)
        write_json(
            folder / "tokenizer_config.json",
            {
                **self.names,
                "tokenizer_class": "PreTrainedTokenizerFast",
                "processor_class": "Llama4Processor",
                "clean_up_tokenization_spaces": False,
                "model_input_names": ["input_ids", "attention_mask"],
            },
        )
        write_atomic(folder / "chat_template.jinja", self.chat_template)

    @staticmethod
    def load(path: Path, *, ids: SpecialIds | None = None) -> "Tokenizer":
        """Open a tokenizer.json, a released tokenizer.model, or a model or data folder that holds one of them.

        One without Llama 4's tokens comes with the chat template beside it. `ids` are those of the folder's
        config.json: without them, such a tokenizer has none.
        """
        if path.is_dir():
            found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).exists()]
            if not found:
                raise HerdError(f"{path / 'tokenizer.json'} is missing: is {path} a complete folder?")
            path = found[0]
        if not path.is_file():
            raise HerdError(f"{path} is missing")
        if path.suffix == ".model":
            return Tokenizer(completed(read_tiktoken(path), special_tokens()), ids=ids)
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise HerdError(f"{path} is not a readable tokenizer ({error})") from None
        if backend.token_to_id("<|header_start|>") is None and (path.parent / "tokenizer_config.json").exists():
            return Tokenizer(backend, template=template_of(path.parent), names=names_of(path.parent, backend), ids=ids)
        if backend.normalizer is not None and json.loads(backend.normalizer.__getstate__()) == _UNGUARD:
            backend.normalizer = None
        return Tokenizer(backend, ids=ids)


CONTINUE = "{{- bos_token }}{%- for message in messages %}{{- message['content'] }}{%- endfor %}"
"""The template of a base model, which has none: it goes on with what is said."""
OFFICES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""What templates call tokens by."""


def template_of(folder: Path) -> str:
    """The folder's chat template, wherever it stands: a file of its own, or an entry of a configuration."""
    if (path := folder / "chat_template.jinja").exists():
        return path.read_text(encoding="utf-8")
    found = [_read_table(folder, name).get("chat_template") for name in ("chat_template", "tokenizer_config")]
    template = next(filter(None, found), CONTINUE)
    if isinstance(template, list):  # several by name
        template = next((entry["template"] for entry in template if entry["name"] == "default"), CONTINUE)
    return str(template)


def names_of(folder: Path, backend: Backend) -> dict[str, str]:
    """The tokens that the folder gives offices to."""
    mapped, config = _read_table(folder, "special_tokens_map"), _read_table(folder, "tokenizer_config")
    names = {}
    for office in OFFICES:
        token = mapped.get(office) or config.get(office)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and backend.token_to_id(token) is not None:
            names[office] = token
    return names


def _read_table(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    content = read_json(path) if path.exists() else {}
    return content if isinstance(content, dict) else {}


def whole(text: str) -> str:
    """`text` with U+FFFD for each half of a surrogate pair that has lost the other."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def bounded(text: str) -> list[str]:
    """`text` cut after MAX_CHARS characters, and where MAX_RUN in a row are white space, or are not."""
    if len(text) <= MAX_RUN:
        return [text]
    pieces = []
    for start in range(0, len(text), MAX_CHARS):
        part = text[start : start + MAX_CHARS]
        runs = (match.span() for match in re.finditer(r"\s+|\S+", part))
        cuts = [at for first, end in runs for at in range(first + MAX_RUN, end, MAX_RUN)]
        pieces += [part[a:b] for a, b in pairwise([0, *cuts, len(part)])]
    return pieces


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges on `texts`; `vocab_size` counts bytes, merges and special tokens."""
    backend = Backend(models.BPE(byte_fallback=False))
    backend.pre_tokenizer = _split()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(completed(backend, SPECIAL_TOKENS))


def _split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def completed(backend: Backend, special: Sequence[str]) -> Backend:
    """`backend` with what stands around its merges: the split, the special tokens, and bos for who asks for it."""
    backend.pre_tokenizer = _split()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    bos = "<|begin_of_text|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return backend

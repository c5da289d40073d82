"""The tokenizer and the chat template that a folder or GGUF of others brings along, with the offices of its tokens."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from herd.config import SpecialIds
from herd.core.files import read_json
from herd.data.tokens.tokenizer import (
    CONTINUE,
    PATTERN,
    PICTURE_TOKENS,
    SPECIAL_TOKENS,
    Tokenizer,
    names_of,
    template_of,
)
from herd.errors import HerdError

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _byte_level(*, split: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)


SPLITS = {
    "gpt-2": [_byte_level(split=True)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _byte_level(split=True)],
    "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated"), _byte_level(split=False)],
    "llama4": [pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"), _byte_level(split=False)],
}
"""By `tokenizer.ggml.pre`, as llama.cpp's llama-vocab.cpp splits before BPE."""
CONTROL, USER_DEFINED = 3, 4


def split_document(name: str) -> dict[str, Any]:
    """One of SPLITS as tokenizer.json writes it."""
    document: dict[str, Any] = json.loads(pre_tokenizers.Sequence(SPLITS[name]).__getstate__())
    return document


def split_name(document: Mapping[str, Any] | None) -> str | None:
    """Which of SPLITS the `pre_tokenizer` of a tokenizer.json is."""
    return next((name for name in SPLITS if _steps(document) == _steps(split_document(name))), None)


def _steps(document: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a pre-tokenizer without what changes no cut."""
    if document is None:
        return []
    parts = document["pretokenizers"] if document.get("type") == "Sequence" else [document]
    return [{key: value for key, value in part.items() if key != "trim_offsets"} for part in parts]


def from_gguf(metadata: Mapping[str, Any], *, where: str) -> tuple[Tokenizer, SpecialIds]:
    """Tokenizer and special ids of a GGUF with a byte-level BPE vocabulary.

    Raises HerdError for another kind, for a split that is not known here, and for a vocabulary that is not there.
    """

    def field(name: str) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}")

    kind, split, tokens = field("model"), field("pre"), field("tokens")
    if kind != "gpt2" or tokens is None or field("merges") is None:
        raise HerdError(
            f"{where}: tokenizer of kind {kind!r} is not read, only byte-level BPE ('gpt2'): adopt a folder"
        )
    if split not in SPLITS:
        raise HerdError(f"{where}: tokenizer.ggml.pre={split!r} is none of {', '.join(SPLITS)}: adopt a folder")
    merges = [tuple(merge.split(" ", 1)) for merge in field("merges")]
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, ignore_merges=split == "llama-bpe"
    )
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[split])
    backend.decoder = decoders.ByteLevel()
    types = field("token_type") or []
    backend.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=False)
            if kind in {CONTROL, USER_DEFINED}
        ]
    )
    if set(SPECIAL_TOKENS) <= set(tokens):  # it speaks Llama 4's format, which Herd renders itself
        tokenizer = Tokenizer(_with_bos(backend, "<|begin_of_text|>"))
        return tokenizer, tokenizer.ids
    eos = field("eos_token_id")
    if eos is None:
        raise HerdError(f"{where}: tokenizer.ggml.eos_token_id is missing: nothing would end an answer")
    bos, eot, eom = field("bos_token_id"), field("eot_token_id"), field("eom_token_id")
    # llama.cpp ends at this one too, whatever the file calls the end of a sequence.
    end_of_text = tokens.index("<|endoftext|>") if "<|endoftext|>" in tokens else eos
    eot = eos if eot is None else eot
    pad = field("padding_token_id")
    special = SpecialIds(
        bos=eos if bos is None else bos,
        end_of_text=end_of_text if end_of_text != eot else eos,
        eom=eot if eom is None else eom,
        eot=eot,
        pad=eos if pad is None else pad,
    )
    if field("add_bos_token"):
        _with_bos(backend, tokens[special.bos])
    names = {"bos_token": tokens[special.bos], "eos_token": tokens[special.eot], "pad_token": tokens[special.pad]}
    template = metadata.get("tokenizer.chat_template", CONTINUE)
    return Tokenizer(backend, template=template, names=names, ids=special), special


def _with_bos(backend: Backend, start: str) -> Backend:
    """`backend`, which now puts `start` first for programs that ask it for special tokens."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start}:1 $B:1", special_tokens=[(start, backend.token_to_id(start))]
    )
    return backend


def from_folder(folder: Path) -> tuple[Tokenizer, SpecialIds]:
    """Tokenizer and special ids of a Hugging Face folder."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise HerdError(f"{path} is missing: open the tokenizer in transformers and `save_pretrained` it there")
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise HerdError(f"{path} is not a readable tokenizer ({error})") from None
    config, generation = (
        read_json(folder / f"{name}.json") if (folder / f"{name}.json").exists() else {}
        for name in ("config", "generation_config")
    )
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = [ends] if isinstance(ends, int) else ends
    if not ends or len(ends) > 3:
        raise HerdError(f"{folder}: eos_token_id={ends!r} must name one to three tokens that end an answer")
    bos, pad = config.get("bos_token_id"), config.get("pad_token_id")
    special = SpecialIds(
        bos=ends[-1] if bos is None else bos,
        end_of_text=ends[0],
        eom=ends[min(1, len(ends) - 1)],
        eot=ends[-1],
        pad=ends[-1] if pad is None else pad,
    )
    tokenizer = Tokenizer(backend, template=template_of(folder), names=names_of(folder, backend), ids=special)
    return tokenizer, special


def with_picture_tokens(tokenizer: Tokenizer, special: SpecialIds) -> tuple[Tokenizer, SpecialIds]:
    """The same with tokens for pictures, behind all ids that are there."""
    more = tokenizer.with_special(PICTURE_TOKENS)
    ids = replace(
        special,
        image_start=more.special["<|image_start|>"],
        image_end=more.special["<|image_end|>"],
        patch=more.special["<|patch|>"],
    )
    return more.with_ids(ids), ids

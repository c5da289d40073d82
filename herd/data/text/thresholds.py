"""The thresholds of the quality filters, by language.

English: Gopher's (Rae et al. 2021, appendix A1) and FineWeb's. The others: FineWeb2's `configs/LANG_SCRIPT.yml`
(Penedo et al. 2025), which were derived from each language's Wikipedia and Common Crawl. A language that is not listed
has what does not depend on a language: no stop words, no length of words. FineWeb2's least scores of a language are
those of another detector (GlotLID) and are not used; nor are its shares of words with a letter, for which datatrove
counts every punctuation mark as a word: they drop a third of Wikipedia's paragraphs (docs/LOG.md, 2026-11-29).
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where a document in one language is dropped; the defaults are those that hold in every language."""

    min_words: int = 50
    max_words: int = 100_000
    word_length: tuple[float, float] = (0, 100)
    """Least and most characters of the mean word."""
    symbols_per_word: float = 0.1
    bullet_lines: float = 0.9
    ellipsis_lines: float = 0.3
    alphabetic_words: float = 0.8
    """Least share of words with a letter: Gopher's in every language, as words without a letter are numbers in all."""
    stop_words: frozenset[str] = frozenset()
    min_stop_words: int = 2
    duplicate_lines: float = 0.3
    top_ngrams: tuple[float, float, float] = (0.2, 0.18, 0.16)
    """Most characters in the most frequent n-gram of 2, 3, 4 words."""
    duplicate_ngrams: tuple[float, float, float, float, float, float] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Most characters in repeated n-grams of 5, 6, 7, 8, 9, 10 words."""
    line_punctuation: float = 0.0
    """Share of lines that end with punctuation from which on a document is kept."""
    short_lines: float = 1.0
    """Most lines of at most 30 characters."""
    duplicate_line_chars: float = 0.1
    newlines_per_word: float = 0.3
    tokens_per_word: int = 1
    """2 where each letter is a token (Chinese, Japanese, Thai): n-grams are so many times longer, counts of words so
    many times larger, and lengths of words are not asked for."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DEFAULT = Thresholds()
UNSPACED = Thresholds(tokens_per_word=2)
BY_LANGUAGE: dict[str, Thresholds] = {
    "th": UNSPACED,
    "lo": UNSPACED,
    "km": UNSPACED,
    "my": UNSPACED,
    "en": Thresholds(
        word_length=(3, 10),
        stop_words=_words("the be to of and that have with"),
        line_punctuation=0.12,
        short_lines=0.67,
        duplicate_line_chars=0.01,
    ),
    "de": Thresholds(
        word_length=(0, 15),
        stop_words=_words("der und die in von im den des mit das er dem als wurde für"),
        duplicate_lines=0.263,
        top_ngrams=(0.169, 0.153, 0.137),
        duplicate_ngrams=(0.141, 0.134, 0.126, 0.117, 0.108, 0.098),
        newlines_per_word=0.152,
    ),
    "fr": Thresholds(
        word_length=(2, 11),
        stop_words=_words("de la le et à en l des du les est d un une il dans par au"),
        duplicate_lines=0.264,
        top_ngrams=(0.161, 0.149, 0.134),
        duplicate_ngrams=(0.15, 0.141, 0.131, 0.121, 0.111, 0.1),
        line_punctuation=0.1,
        newlines_per_word=0.185,
    ),
    "es": Thresholds(
        word_length=(4, 14),
        stop_words=_words("de la en el y a que del los se por un con una las su"),
        duplicate_lines=0.265,
        top_ngrams=(0.077, 0.097, 0.112),
        duplicate_ngrams=(0.152, 0.137, 0.123, 0.114, 0.107, 0.099),
        line_punctuation=0.3,
        newlines_per_word=0.171,
    ),
    "it": Thresholds(
        word_length=(3, 21),
        stop_words=_words("di e il la in a del che è della un per nel l con da i una"),
        duplicate_lines=0.246,
        top_ngrams=(0.198, 0.156, 0.133),
        duplicate_ngrams=(0.144, 0.136, 0.127, 0.118, 0.109, 0.1),
        line_punctuation=0.025,
        newlines_per_word=0.2,
    ),
    "pt": Thresholds(
        word_length=(3, 13),
        stop_words=_words("de a e o em do da que um no uma com para na é foi"),
        duplicate_lines=0.325,
        top_ngrams=(0.093, 0.117, 0.139),
        duplicate_ngrams=(0.19, 0.172, 0.154, 0.142, 0.131, 0.12),
        line_punctuation=0.154,
        newlines_per_word=0.23,
    ),
    "ru": Thresholds(
        word_length=(3, 11),
        stop_words=_words("в и на с года по году из был к не от что за для его как а он также до после"),
        duplicate_lines=0.322,
        top_ngrams=(0.184, 0.164, 0.146),
        duplicate_ngrams=(0.168, 0.156, 0.145, 0.133, 0.121, 0.109),
        line_punctuation=0.231,
        newlines_per_word=0.139,
    ),
    "ja": Thresholds(
        stop_words=_words("の に を は た て が と で 年 し ・ 月 れ さ"),
        duplicate_lines=0.375,
        top_ngrams=(0.121, 0.129, 0.145),
        duplicate_ngrams=(0.307, 0.283, 0.264, 0.248, 0.234, 0.223),
        line_punctuation=0.167,
        newlines_per_word=0.162,
        tokens_per_word=2,
    ),
    "zh": Thresholds(
        stop_words=_words("的 年 在 月 是 和 日 了 於 · 為 有 被 人 中 为 他 與 後 也 而 由"),
        duplicate_lines=0.287,
        top_ngrams=(0.256, 0.201, 0.171),
        duplicate_ngrams=(0.198, 0.182, 0.167, 0.154, 0.14, 0.127),
        line_punctuation=0.106,
        newlines_per_word=0.178,
        tokens_per_word=2,
    ),
    "vi": Thresholds(
        word_length=(3, 11),
        stop_words=_words("là và của một được trong năm các có loài này đã người"),
        duplicate_lines=0.293,
        top_ngrams=(0.223, 0.197, 0.171),
        duplicate_ngrams=(0.178, 0.163, 0.15, 0.136, 0.124, 0.111),
        line_punctuation=0.333,
        newlines_per_word=0.103,
    ),
    "id": Thresholds(
        word_length=(3, 11),
        stop_words=_words("dan yang di pada dari ini dengan adalah untuk dalam"),
        duplicate_lines=0.25,
        top_ngrams=(0.088, 0.104, 0.12),
        duplicate_ngrams=(0.176, 0.158, 0.142, 0.128, 0.119, 0.109),
        line_punctuation=0.25,
        newlines_per_word=0.222,
    ),
    "hi": Thresholds(
        word_length=(2, 21),
        stop_words=_words("के में है की और से का को एक हैं पर"),
        duplicate_lines=0.206,
        top_ngrams=(0.208, 0.198, 0.161),
        duplicate_ngrams=(0.135, 0.125, 0.116, 0.108, 0.099, 0.09),
        line_punctuation=0.091,
        newlines_per_word=0.316,
    ),
    "ar": Thresholds(
        word_length=(2, 9),
        stop_words=_words("، في من على إلى عام أن مع أو هو عن التي كان بين ما كانت هي المتحدة بعد"),
        duplicate_lines=0.304,
        top_ngrams=(0.197, 0.172, 0.146),
        duplicate_ngrams=(0.165, 0.153, 0.142, 0.131, 0.12, 0.109),
        line_punctuation=0.143,
        newlines_per_word=0.189,
    ),
}


def thresholds(language: str) -> Thresholds:
    """Those of `language`, ISO 639-1."""
    return BY_LANGUAGE.get(language, DEFAULT)

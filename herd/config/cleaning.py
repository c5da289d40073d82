"""Which filters text passes on its way into a data folder. Each is off at false, at 0, or left out of its tuple.

The defaults are FineWeb2's pipeline: its thresholds per language, no rule that compares single lines over documents and
no rule of C4 that removes a page's structure.
What a filter does and where it is published is in `herd/data/text/`, and in docs/data.md as one table.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from herd.config.ranges import Checked, CountOrNone, Range, Share

PiiKind = Literal["email", "phone", "iban", "key"]


@dataclass(frozen=True, kw_only=True)
class CleaningConfig(Checked):
    """Switches and sizes of the text filters, in the order in which they run."""

    languages: tuple[str, ...] = ()
    """Languages that are kept, ISO 639-1; all of them if none is given."""
    mojibake: bool = True
    """Drop documents that were decoded with the wrong encoding."""
    normalise: bool = True
    """Unicode NFC, LF line ends, no control characters, no more than one blank line in a row."""
    line_symbols: bool = False
    """Drop lines that are mostly digits and symbols. Not for code and tables."""
    line_language: bool = False
    """Drop lines in another language than their document's."""
    boilerplate_documents: CountOrNone = 0
    """Drop lines that at least this many documents of one source and language have in common. For pages of one site;
    not for code, Markdown or documents made from one form."""
    boilerplate_share: Share = 0.1
    """... and at least this share of them."""
    c4_citations: bool = True
    """Remove `[1]`, `[edit]` and `[citation needed]` from lines."""
    c4_long_words: bool = True
    """Drop lines with a word of more than 1,000 characters."""
    c4_policy: bool = True
    """Drop lines about cookies, privacy policies and terms of use (English)."""
    c4_javascript: bool = False
    """Drop lines that mention JavaScript. Not for texts about programming."""
    c4_terminal_punctuation: bool = False
    """Drop lines that do not end a sentence. Not for headings, lists, verse and wrapped lines."""
    c4_words_per_line: bool = False
    """Drop lines of fewer than 3 words."""
    max_bytes: CountOrNone = 200_000
    """Longer documents are cut at the end of a line; 0 leaves them whole."""
    min_bytes: CountOrNone = 200
    """Drop shorter documents."""
    max_symbol_share: Annotated[float, Range(0, 1)] = 0.35
    """Drop documents with a larger share of digits and symbols; 1 keeps all."""
    language: bool = True
    """Drop documents in another language than their source declares, or in none that can be identified."""
    gopher_words: bool = True
    """Drop documents of fewer than 50 or more than 100,000 words."""
    gopher_word_length: bool = True
    """Drop documents whose mean word is too short or too long for the language."""
    gopher_symbols: bool = True
    """Drop documents with more than one `#` or ellipsis in ten words."""
    gopher_bullets: bool = True
    """Drop documents with more than 90 % of lines that begin with a bullet."""
    gopher_ellipses: bool = True
    """Drop documents with more than 30 % of lines that end with an ellipsis."""
    gopher_alphabetic: bool = True
    """Drop documents with fewer than 80 % of words that have a letter."""
    gopher_stop_words: bool = True
    """Drop documents with fewer than two of the language's most frequent words."""
    gopher_duplicate_lines: bool = True
    """Drop documents that repeat too many of their lines."""
    gopher_top_ngrams: bool = True
    """Drop documents with too many characters in one n-gram of 2 to 4 words."""
    gopher_duplicate_ngrams: bool = True
    """Drop documents with too many characters in repeated n-grams of 5 to 10 words."""
    fineweb_punctuation: bool = True
    """Drop documents with too few lines that end with punctuation."""
    fineweb_short_lines: bool = True
    """Drop documents with more than 67 % of lines of at most 30 characters (English)."""
    fineweb_duplicate_lines: bool = True
    """Drop documents with more than 10 % of the characters in repeated lines (English: 1 %)."""
    fineweb_newlines: bool = True
    """Drop documents with too many lines for their words."""
    c4_lorem_ipsum: bool = True
    """Drop documents with `lorem ipsum`."""
    c4_curly_bracket: bool = False
    """Drop documents with a curly bracket. Not for code."""
    c4_sentences: bool = False
    """Drop documents of fewer than 5 sentences."""
    contamination_ngram: CountOrNone = 13
    """Drop documents that share a run of so many words with an evaluation set; 0 keeps them."""
    mask: tuple[PiiKind, ...] = ("email", "phone", "iban", "key")
    """Personal data and secrets that are replaced by a mask such as `[email]`."""
    exact_duplicates: bool = True
    """Keep one of documents with the same text."""
    near_duplicates: Share = 0.7
    """Keep one of documents whose shingles have at least this Jaccard similarity; 0 keeps all."""
    rehydrate: bool = True
    """Let a document that was found several times be trained on more often, up to 8 times an epoch (FineWeb2)."""

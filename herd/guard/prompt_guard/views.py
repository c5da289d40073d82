"""The readings of a text that a prompt guard scores: as it is, and as a person or a model would read it.

1. as it is, but for invisible characters;
2. plain: look-alike letters, spaced-out words and digits for letters replaced, misspelt words corrected;
3. decoded: the plain text with encoded passages decoded, ciphers and reversed lines read.

A reading that says the same words as an earlier one is left out, so most texts have one.
"""

import re

from herd.guard.prompt_guard.decode import deciphered, decoded
from herd.guard.prompt_guard.letters import plain_letters, unleet, visible
from herd.guard.prompt_guard.words import Lexicon

_SPACED = re.compile(r"(?<![^\W_])[^\W_](?:(?:[ \t]{1,3}|[._\-*|/\\~+])[^\W\d_](?![^\W_])){3,}")
# Each pattern begins only where a run begins, or a megabyte of one letter would take its square in steps.
_BROKEN = re.compile(r"(?<![^\W\d_])[^\W\d_]+(?:[_\-.*|~\\^`]+[^\W\d_]+)+")
_RUN = re.compile(r"[A-Za-z]{14,200}")


def views(text: str, lexicon: Lexicon) -> tuple[str, ...]:
    """The different readings of `text`, the first being `text` without what cannot be seen."""
    seen = visible(text)
    plain = lexicon.corrected(joined(unleet(plain_letters(seen), lexicon.counts), lexicon))
    # Encoded passages are looked for in the text as it is: the plain one has changed their digits.
    code = decoded(seen)
    opened = deciphered(code, lexicon)
    if opened != seen:
        opened = joined(unleet(plain_letters(visible(opened)), lexicon.counts), lexicon)
    readings = [seen, plain, *([opened] if opened != seen else [])]
    return tuple(dict.fromkeys(readings))


def joined(text: str, lexicon: Lexicon) -> str:
    """With letters that are spaced out (`i g n o r e`, `i-g-n-o-r-e`) put together, words broken by signs (`ig_no_re`)
    likewise, and long runs of letters split into words."""
    text = _SPACED.sub(lambda match: _spaced(match[0], lexicon), text)
    text = _BROKEN.sub(lambda match: _broken(match[0], lexicon), text)
    return _RUN.sub(lambda match: _split_run(match[0], lexicon), text)


def _spaced(run: str, lexicon: Lexicon) -> str:
    # Two blanks or more between letters end a word where others are one apart.
    words = [re.sub(r"[\W_]", "", word) for word in re.split(r"\s{2,}", run)]
    return " ".join(lexicon.segmented(word) if word.isascii() else word for word in words)


def _broken(word: str, lexicon: Lexicon) -> str:
    parts = re.split(r"[\W_]+", word)
    whole = "".join(parts)
    # A compound of known words, such as `co-operate` or `snake_case`, is none.
    return whole if whole.lower() in lexicon.counts and not all(p.lower() in lexicon.counts for p in parts) else word


def _split_run(run: str, lexicon: Lexicon) -> str:
    if run.lower() in lexicon.counts:
        return run
    split = lexicon.segmented(run)
    return split if lexicon.known(split) > 0.9 and " " in split else run

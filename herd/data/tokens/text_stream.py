"""Text from tokens as they come: the same as decoding them all at once, however long the answer.

A character whose bytes are not all there yet is held back. Bytes that are no character become U+FFFD.
"""

import codecs

from herd.data.tokens.tokenizer import Tokenizer

UNFINISHED = "\ufffd"
"""How a whole decoding shows the bytes of a character that is not whole yet."""


class TextStream:
    """The text of one answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """What is sure after one more token."""
        if self._tokenizer.is_byte_level:
            return self._bytes.decode(
                b"" if token in self._tokenizer.special_ids else self._tokenizer.token_bytes(token)
            )
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        return "" if text.endswith(UNFINISHED) else self._more(text)

    def finish(self) -> str:
        """What was held back, at the end."""
        if self._tokenizer.is_byte_level:
            return self._bytes.decode(b"", final=True)
        return self._more(self._tokenizer.decode(self._ids))

    def _more(self, text: str) -> str:
        new, self._shown = text[len(self._shown) :], text
        return new

"""The form that an answer must have: a JSON schema, any JSON object, a regular expression, or a grammar.

llguidance compiles each into an automaton over bytes and computes which tokens may come next; the sampler masks the
others. Special tokens are never allowed inside, whatever the grammar has, and an end token is allowed exactly when the
grammar accepts the answer so far. Compiled grammars are kept, and each request works on a copy.
`json_schema` prepares a JSON schema for that. Left out, and refused by name: keywords of JSON Schema that llguidance
does not know (`not`, `if`, `uniqueItems`, …); unknown keywords are annotations there and change nothing.
"""

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from herd.data.tokens.tokenizer import Tokenizer
from herd.engine.json_schema import MAX_CHARS, prepare
from herd.errors import HerdError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

DEADLINE_S = 5.0
"""Longest compilation."""
KEPT = 64
"""Compiled forms that are remembered."""
COMPILERS = 4
"""Compilations at one time: those that nobody waits for any more run on to llguidance's own limits, and no more."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A form, as its source."""

    kind: Literal["json_schema", "regex", "grammar"]
    """grammar: Lark, as llguidance reads it."""
    source: str

    def __post_init__(self) -> None:
        if len(self.source) > MAX_CHARS:
            raise HerdError(f"the {self.kind} has {len(self.source)} characters: {MAX_CHARS} are the most")

    @staticmethod
    def from_schema(schema: Mapping[str, Any] | bool, *, strict: bool = False) -> "Structure":
        """The form of a JSON schema; `strict`: as OpenAI has it, all objects closed.

        Raises HerdError where it cannot be held to.
        """
        return Structure(kind="json_schema", source=json.dumps(prepare(schema, strict=strict)))


ANY_OBJECT = Structure.from_schema({"type": "object"})


class Structures:
    """The forms compiled for one tokenizer; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, stop: tuple[int, ...]) -> None:
        self._tokenizer, self._stop, self._size = tokenizer, list(stop), vocab_size
        self._ordinary = torch.ones(vocab_size, dtype=torch.bool)
        # Grammars may name tokens by their numbers.
        self._ordinary[list(tokenizer.special.values())] = False
        self._backend: LLTokenizer | None = None
        self._compiled: OrderedDict[Structure, LLMatcher] = OrderedDict()
        self._lock, self._compilers = threading.Lock(), threading.BoundedSemaphore(COMPILERS)

    def start(self, structure: Structure, *, deadline_s: float = DEADLINE_S) -> "GrammarState":
        """The state of the grammar before an answer begins.

        Raises HerdError where the form is faulty, not supported, or takes longer to compile.
        """
        with self._lock:
            matcher = self._compiled.get(structure)
        if matcher is None:
            matcher = self._compile(structure, deadline_s)
            with self._lock:
                self._compiled[structure] = matcher
                while len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
        return GrammarState(matcher.deep_copy(), self._ordinary, self._stop)

    def _compile(self, structure: Structure, deadline_s: float) -> "LLMatcher":
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise HerdError("structured output needs llguidance: pip install 'herd-lm[serve]'") from None
        made: list[LLMatcher | ValueError] = []
        tokens = self._tokens()

        def work() -> None:
            try:
                made.append(LLMatcher(tokens, _grammar(structure), log_level=0))
            except ValueError as error:
                made.append(error)
            finally:
                self._compilers.release()

        # Of its own limits (fuel of the lexer, size of the grammar) one may yet take long; a thread cannot be ended, so
        # that it runs on to those limits, and nobody waits.
        start = time.monotonic()
        if not self._compilers.acquire(timeout=deadline_s):
            raise HerdError(f"{COMPILERS} other forms have been compiling for {deadline_s:.1f} s: try again later")
        thread = threading.Thread(target=work, name="herd-structure", daemon=True)
        thread.start()
        thread.join(max(0.0, start + deadline_s - time.monotonic()))
        if not made:
            seconds = time.monotonic() - start
            raise HerdError(f"the {structure.kind} was not compiled within {seconds:.1f} s: make it simpler")
        matcher = made[0]
        if isinstance(matcher, ValueError):
            raise HerdError(f"{structure.kind}: {_reason(str(matcher))}")
        if matcher.is_error():
            raise HerdError(f"{structure.kind}: {_reason(matcher.get_error())}")
        # What allows nothing from the start must not fail in the answer.
        GrammarState(matcher.deep_copy(), self._ordinary, self._stop).allowed_tokens()
        return matcher

    def _tokens(self) -> "LLTokenizer":
        """The vocabulary for llguidance; a second's work for the released one, done once."""
        from llguidance import LLTokenizer
        from llguidance._tokenizer import TokenizerWrapper

        with self._lock:
            if self._backend is None:
                self._backend = LLTokenizer(
                    TokenizerWrapper(_Vocabulary(self._tokenizer, self._stop)),
                    n_vocab=self._size,
                    eos_token=self._stop,
                )
            return self._backend


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, stop: list[int]) -> None:
        self._tokenizer, self.eos_token_id = tokenizer, stop[0]
        self.special_token_ids = sorted({*tokenizer.special.values(), *stop})
        special = set(self.special_token_ids)
        # The byte 0xff is in no text: no grammar over bytes can ask for it.
        self.tokens = [
            b"\xff%d" % index if index in special else tokenizer.token_bytes(index)
            for index in range(tokenizer.vocab_size)
        ]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode())


def _grammar(structure: Structure) -> str:
    from llguidance import LLMatcher, regex_to_lark

    match structure.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(structure.source)
        case "regex":
            # \d would else be the digits of every script.
            return f"start: /{regex_to_lark(structure.source, use_ascii='d')}/"
        case "grammar":
            return structure.source


def _reason(error: str) -> str:
    """llguidance's error in one line, a schema's words that it does not know by their names."""
    if unknown := re.search(r"Unimplemented keys: \[(.*?)\]", error):
        return f"{unknown[1]} is not supported: leave it out"
    if "oneOf constraints are not supported" in error:
        return '"oneOf" of forms that overlap is not supported: use anyOf'
    # Behind <state> are the parser's innards.
    text = re.sub(r"\s+", " ", error.partition("<state>")[0]).strip()[:300]
    return "it allows nothing more" if "NoExtension" in text else text


class GrammarState:
    """The state of one answer's grammar."""

    def __init__(self, matcher: "LLMatcher", ordinary: Tensor, stop: list[int]) -> None:
        self._matcher, self._ordinary, self._stop = matcher, ordinary, stop
        self._allowed: Tensor | None = None

    @property
    def is_accepting(self) -> bool:
        """Whether the answer may end here."""
        return self._matcher.is_accepting()

    def allowed_tokens(self) -> Tensor:
        """[V], the tokens that may come next. Raises HerdError where none may."""
        if self._allowed is None:
            self._allowed = self._compute_mask()
        return self._allowed

    def _compute_mask(self) -> Tensor:
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed_V = torch.from_numpy(bits[: len(self._ordinary)]).bool() & self._ordinary
        # In this order: to compute the mask brings the matcher forward.
        allowed_V[self._stop] = self._matcher.is_accepting()
        if self._matcher.is_error() or not allowed_V.any():
            reason = _reason(self._matcher.get_error()) or "it allows nothing more and does not accept"
            raise HerdError(f"the structure cannot be continued: {reason}")
        return allowed_V

    def forced_tokens(self, count: int) -> list[int]:
        """At most `count` tokens that must come next, whatever the logits."""
        return list(self._matcher.compute_ff_tokens())[:count]

    def push(self, token: int) -> None:
        """Advance by a token that was allowed."""
        self._matcher.consume_token(token)
        self._allowed = None

"""Whether a reply is about what it was asked, by the words that the two share.

Words are cut to five letters, so that forms of a word count as one; words that say nothing about a topic ("please",
"write", "ideas") are left out. A topic's word counts where it is among the first `HEAD` words of the reply or comes
three times: a long text about something else has most words once. Left out: meaning. A reply in other words than the
prompt's is called unrelated though it may be an answer: see docs/balance.md for how often.
"""

import re
from collections import Counter

HEAD = 40
MIN_WORDS = 12
"""Of a reply that may be called unrelated; where the prompt has one or two words of a topic, `FEW_WORDS`."""
FEW_WORDS = 50
_ACCEPTS = re.compile(r"\W*(?:sure|certainly|of course|absolutely|here(?:'s| is| are| you)|okay|great)\b", re.I)
"""Openings that announce an answer, which then names what it is about."""
_LONG_FORM = re.compile(
    r"\b(?:essay|article|story|novel|manifest\w*|script|speech|tutorial|guide|report|blog|letter|e-?mail|recipe|poem|song"
    r"|explain|describe|discuss|analy[sz]e|summari[sz]e|in detail|step[ -]by[ -]step)\b",
    re.I,
)
"""Prompts that a few words cannot answer, unless they name the topic."""
_WORD = re.compile(r"[a-z][a-z']+")
_COMMON_WORDS = """\
a about above after again all also always am an and answer any are argue article as ask assist at be because been
before being below best better between big book both brief briefly bullet but by can case cause causes code come
common compare could create creative day days describe detail detailed details develop did difference different do
does doing don down draft during each easily easy effective else email essay even ever every example examples explain
explanation fact facts few find following for formal format from fun funny further generate get give go going good got
great guide guidelines had has have having he help her here hers high him his how however hypothetical i idea ideas if
imagine important improve in information instruction instructions interesting into is it its joke just key kind kinds
know known large let letter life like list little ll long low made main make many may me message method methods might
more most much must my name names need needs new nice no nor not novel now of off on once one only or other our out
outline over own paragraph part parts people person persuasive piece plan play please poem point points possible post
prompt propose provide put question questions quick re real really reason reasons recipe recommend report request
response role s same say scene script see sentence share she short should show simple small so some someone something
sort speech start step steps still story style such suggest summarize summary support sure t take talk task tell text
than that the their them then there these they thing things think this those through time times tip tips to today too
tutorial two type types under understand unique until up us use used using ve very want was way ways we well were what
when where whether which while who whom why will with within without word words work works world would write writing
written year years yes you your yours
"""
"""Of English, and of requests: they say nothing about a topic."""


def words_of(text: str) -> list[str]:
    """In lower case, apostrophes inside."""
    return _WORD.findall(text.lower().replace("’", "'"))


def stem(word: str, letters: int = 5) -> str:
    """Five letters, without the sign of a plural."""
    word = word.split("'")[0]
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        word = word[:-1]
    return word[:letters]


_COMMON = frozenset(_COMMON_WORDS.split())
_COMMON_STEMS = frozenset(stem(word, 9) for word in _COMMON)


def topic_of(prompt: str) -> set[str]:
    """The stems of the words that say what a prompt is about."""
    return {
        stem(word)
        for word in words_of(prompt)
        if len(word) > 2 and word not in _COMMON and stem(word, 9) not in _COMMON_STEMS
    }


def unrelated(prompt: str, reply: str) -> bool:
    """Whether a reply has nothing of the prompt's topic; never where the prompt names none, and of very
    short ones only where it asks for a long text."""
    words = [stem(word) for word in words_of(reply)]
    topic = topic_of(prompt)
    if not topic or not words:
        return False
    if len(words) < MIN_WORDS:
        return _LONG_FORM.search(prompt) is not None and not topic & set(words)
    if len(words) < FEW_WORDS and len(topic) < 3 and not _ACCEPTS.match(reply):
        return False
    head, count = set(words[:HEAD]), Counter(words)
    at_once = sum(one in head for one in topic)
    later = sum(one not in head and count[one] > 2 for one in topic)
    return at_once + later < (1 if len(topic) < 5 or at_once else 2)

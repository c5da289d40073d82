"""HTML to blocks of plain text, parsed by selectolax (Lexbor); nothing here matches tags by regex."""

from selectolax.lexbor import LexborHTMLParser, LexborNode

from herd.data.text.normalise import normalise

DROPPED = (
    "script, style, header, footer, nav, aside, pre, .navheader, .navfooter, .docnav, .toc, .index, "
    "#switch, .switchinline .MAC, .legalnotice"
)
INLINE = frozenset(
    ("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "br", "cite", "code", "em", "font", "i", "img", "kbd", "mark")
    + ("q", "s", "samp", "small", "span", "strong", "sub", "sup", "tt", "u", "var")
)


def html_blocks(html: str, root: str = "body") -> list[str]:
    """The text under the CSS selector `root`, cut wherever an element that is not inline begins or ends."""
    tree = LexborHTMLParser(html)
    top = tree.css_first(root)
    if top is None:
        return []
    for node in top.css(DROPPED):
        node.decompose()
    blocks: list[str] = []
    pieces: list[str] = []

    def flush() -> None:
        text = normalise("".join(pieces))
        pieces.clear()
        if text:
            blocks.append(text)

    def walk(node: LexborNode) -> None:
        for child in node.iter(include_text=True):
            if child.tag == "-text":
                pieces.append(child.text_content or "")
            elif child.tag in INLINE:
                walk(child)
                if child.tag == "br":
                    pieces.append(" ")
            else:
                flush()
                walk(child)
                flush()

    walk(top)
    flush()
    return blocks

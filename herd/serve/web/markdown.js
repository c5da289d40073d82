// Markdown as DOM nodes. A model's text is never parsed as HTML: each node is made here, and text is set as text.
// Addresses lead to http, https and mailto only and are loaded by a click alone; a picture becomes a link, as loading it
// would tell its host what was said. Time is linear in the text, but for the depth of nesting, which has a limit.
// Left out: HTML, footnotes, references, indented code, formulas.
import { highlight } from "./highlight.js";

const MAX_DEPTH = 12;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=\s|$)(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const INTERRUPTS = /^ {0,3}(?:[-*+]|1[.)])[ \t]+\S/; // a list may follow a paragraph's line; a number that begins a line may not
const TASK = /^\[([ xX])\] /;

/** Shows `source` in `container`. Blocks that have not changed since the last call keep their nodes. */
export function renderMarkdown(container, source) {
  const blocks = parseBlocks(source.replace(/\r\n?/g, "\n").split("\n"));
  const known = container.blocks ?? [];
  let same = 0;
  while (same < blocks.length && known[same]?.raw === blocks[same].raw) same += 1;
  while (container.childNodes.length > same) container.lastChild.remove();
  for (const block of blocks.slice(same)) container.append(blockNode(block, 0));
  container.blocks = blocks;
}

// Blocks: each has its kind, its source, and what its kind needs.
function parseBlocks(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) { at += 1; continue; }
    const begin = at;
    const block = fence() ?? heading() ?? rule() ?? quote() ?? table() ?? list() ?? paragraph();
    block.raw = lines.slice(begin, at).join("\n");
    blocks.push(block);

    function fence() {
      const found = FENCE.exec(line);
      if (!found) return null;
      const mark = found[1], indent = line.indexOf(mark), code = [];
      for (at += 1; at < lines.length; at += 1) {
        const end = lines[at].trim();
        if (end.length >= mark.length && end === mark[0].repeat(end.length)) { at += 1; break; }
        code.push(dedent(lines[at], indent));
      }
      return { kind: "code", language: found[2].trim().split(/[\s{]/)[0], code: code.join("\n") };
    }
    function heading() {
      const found = HEADING.exec(line);
      if (!found) return null;
      at += 1;
      return { kind: "heading", level: found[1].length, text: found[2].trim().replace(/(^|\s)#+$/, "").trim() };
    }
    function rule() {
      if (!RULE.test(line)) return null;
      at += 1;
      return { kind: "rule" };
    }
    function quote() {
      if (!QUOTE.test(line)) return null;
      const inner = [];
      for (; at < lines.length && QUOTE.test(lines[at]); at += 1) inner.push(lines[at].replace(QUOTE, ""));
      return { kind: "quote", lines: inner };
    }
    function table() {
      const aligned = line.includes("|") && at + 1 < lines.length && alignments(lines[at + 1]);
      const head = aligned && cells(line);
      if (!aligned || head.length !== aligned.length) return null;
      const rows = [];
      for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) rows.push(cells(lines[at]));
      return { kind: "table", head, aligned, rows };
    }
    function list() {
      const first = ITEM.exec(line);
      if (!first) return null;
      const kind = kindOf(first[2]), items = [];
      let loose = false;
      while (at < lines.length) {
        const found = ITEM.exec(lines[at]);
        if (!found || kindOf(found[2]) !== kind || RULE.test(lines[at])) break;
        // Many models indent what belongs to an item by two columns, whatever its mark's width.
        const width = found[1].length + found[2].length + Math.min(found[3].length || 1, 4), least = found[1].length + 2;
        const inner = [lines[at].slice(found[0].length)];
        let blank = false;
        for (at += 1; at < lines.length; at += 1) {
          const next = lines[at];
          if (!next.trim()) { blank = true; inner.push(""); continue; }
          if (indentOf(next) >= least) {
            loose ||= blank && !ITEM.test(dedent(next, width));
            inner.push(dedent(next, width));
          } else if (blank || ITEM.test(next) || beginsBlock(next)) break;
          else inner.push(next.trim());
          blank = false;
        }
        while (inner.length && !inner.at(-1)) inner.pop();
        loose ||= blank && at < lines.length && kindOf(ITEM.exec(lines[at])?.[2] ?? "") === kind;
        items.push(inner);
      }
      return { kind: "list", ordered: kind === "1", start: parseInt(first[2], 10), items, loose };
    }
    function paragraph() {
      const text = [line.trim()];
      for (at += 1; at < lines.length && lines[at].trim() && !beginsBlock(lines[at]); at += 1) {
        if (/^ {0,3}=+[ \t]*$/.test(lines[at])) { at += 1; return { kind: "heading", level: 1, text: text.join("\n") }; }
        text.push(lines[at].trim());
      }
      return { kind: "paragraph", text: text.join("\n") };
    }
  }
  return blocks;
}

const beginsBlock = (line) => [FENCE, HEADING, RULE, QUOTE, INTERRUPTS].some((kind) => kind.test(line));
const kindOf = (mark) => (/\d/.test(mark) ? "1" : mark);

function indentOf(line) {
  let columns = 0;
  for (const letter of line) {
    if (letter === " ") columns += 1;
    else if (letter === "\t") columns += 4;
    else break;
  }
  return columns;
}
function dedent(line, columns) {
  let at = 0;
  for (let left = columns; left > 0 && (line[at] === " " || line[at] === "\t"); at += 1) left -= line[at] === "\t" ? 4 : 1;
  return line.slice(at);
}
function cells(line) {
  const found = [""];
  let inCode = false;
  const row = line.trim().replace(/^\|/, "");
  for (let at = 0; at < row.length; at += 1) {
    if (row[at] === "`") inCode = !inCode;
    if (row[at] === "\\" && row[at + 1] === "|") { found[found.length - 1] += "|"; at += 1; }
    else if (row[at] === "|" && !inCode) found.push("");
    else found[found.length - 1] += row[at];
  }
  if (found.length > 1 && !found.at(-1).trim()) found.pop();
  return found.map((cell) => cell.trim());
}
function alignments(line) {
  if (!line.includes("-")) return null;
  const found = cells(line);
  if (!found.every((cell) => /^:?-+:?$/.test(cell))) return null;
  return found.map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : ""));
}

function made(tag, className = "", text = null) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== null) node.textContent = text;
  return node;
}

// The direction of a block on top is that of its first letter; what is in it follows, and code is from left to right.
function blockNode(block, depth) {
  const node = MAKERS[block.kind](block, depth);
  if (!depth && block.kind !== "code") node.dir = "auto";
  return node;
}
const MAKERS = {
  paragraph(block) { return inline(made("p"), block.text); },
  // The page's own headings are h1 and h2.
  heading(block) { return inline(made(`h${Math.min(block.level + 2, 6)}`, `level${block.level}`), block.text); },
  rule() { return made("hr"); },
  quote(block, depth) { return children(made("blockquote"), block.lines, depth); },
  code(block) {
    const box = made("figure", "code"), bar = made("figcaption", "", block.language || "text"), copy = made("button", "copy", "Copy");
    const pre = made("pre"), code = made("code");
    box.dir = "ltr";
    copy.type = "button";
    copy.dataset.act = "copy-code";
    bar.append(copy);
    pre.tabIndex = 0; // so that the arrow keys scroll it
    pre.setAttribute("role", "region");
    pre.setAttribute("aria-label", `Code, ${block.language || "text"}`);
    highlight(code, block.code, block.language);
    pre.append(code);
    box.append(bar, pre);
    return box;
  },
  list(block, depth) {
    const node = made(block.ordered ? "ol" : "ul");
    if (block.ordered && block.start !== 1) node.start = block.start;
    for (const lines of block.items) {
      const item = made("li"), task = TASK.exec(lines[0] ?? "");
      if (task) {
        const box = made("input");
        box.type = "checkbox";
        box.disabled = true;
        box.checked = task[1] !== " ";
        box.setAttribute("aria-label", box.checked ? "done" : "to do");
        item.className = "task";
        item.append(box, " ");
        lines[0] = lines[0].slice(task[0].length);
      }
      node.append(children(item, lines, depth, !block.loose));
    }
    return node;
  },
  table(block) {
    const box = made("div", "table"), table = made("table"), head = made("thead"), body = made("tbody");
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Table");
    const row = (values, tag) => {
      const line = made("tr");
      block.aligned.forEach((side, place) => line.append(inline(made(tag, side), values[place] ?? "")));
      return line;
    };
    head.append(row(block.head, "th"));
    body.append(...block.rows.map((values) => row(values, "td")));
    table.append(head, body);
    box.append(table);
    return box;
  },
};
function children(node, lines, depth, tight = false) {
  if (depth >= MAX_DEPTH) { node.append(lines.join("\n")); return node; }
  for (const block of parseBlocks(lines)) {
    if (tight && block.kind === "paragraph") inline(node, block.text);
    else node.append(blockNode(block, depth + 1));
  }
  return node;
}

// What is inside a line.
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}_]/u;
const ADDRESS = /https?:\/\/[^\s<>"`]+/y;
const BRACKETED = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const SPECIAL = /[\\`*_~[!<h\n]/g;
const STYLES = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "del" };

function inline(parent, text, depth = 0, links = true) {
  const code = codeSpans(text), brackets = matchBrackets(text, code), hopeless = new Set();
  let at = 0, plain = 0;
  const flush = (end) => { if (end > plain) parent.append(text.slice(plain, end)); };
  const put = (node, end) => { flush(at); parent.append(node); at = plain = end; };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const found = SPECIAL.exec(text);
    if (!found) break;
    at = found.index;
    const letter = text[at];
    if (letter === "\n") put(made("br"), at + 1);
    else if (letter === "\\" && PUNCTUATION.test(text[at + 1] ?? "")) { flush(at); plain = at + 1; at += 2; }
    else if (letter === "`") {
      const span = code.get(at);
      if (span) {
        const node = made("code", "", span.text);
        node.dir = "ltr";
        put(node, span.end);
      } else while (text[at] === "`") at += 1;
    } else if ("*_~".includes(letter)) {
      if (depth < MAX_DEPTH && styled(letter)) continue;
      while (text[at] === letter) at += 1;
    } else if (!links || !(letter === "<" ? bracketed() : letter === "h" ? bare() : link(letter === "!"))) at += 1;
  }
  flush(text.length);
  return parent;

  function matches(pattern) {
    pattern.lastIndex = at;
    return pattern.exec(text);
  }
  function bracketed() {
    const found = matches(BRACKETED), node = found && anchor(found[1]);
    if (node) put(node, at + found[0].length);
    return node;
  }
  function bare() {
    const found = !WORD.test(text[at - 1] ?? "") && matches(ADDRESS), address = found && withoutTail(found[0]);
    const node = found && anchor(address);
    if (node) put(node, at + address.length);
    return node;
  }
  function link(isPicture) {
    const open = isPicture ? at + 1 : at, close = brackets.get(open);
    const target = close !== undefined && text[close + 1] === "(" && addressAt(text, close + 2);
    const node = target && anchor(target.address);
    if (!node) return false; // it stays as it is written, also where it leads to what may not be opened
    const label = text.slice(open + 1, close) || target.address;
    node.textContent = isPicture || depth >= MAX_DEPTH ? label : "";
    if (isPicture) node.className = "picture";
    if (!node.textContent) inline(node, label, depth + 1, false);
    put(node, target.end);
    return true;
  }
  function styled(letter) {
    let length = 1;
    while (text[at + length] === letter) length += 1;
    if (length > 3 || (letter === "~" && length !== 2)) return false;
    if (!(text[at + length] ?? " ").trim() || (letter === "_" && WORD.test(text[at - 1] ?? ""))) return false;
    const mark = letter.repeat(length), end = hopeless.has(mark) ? -1 : closing(letter, length, at + length);
    if (end < 0) { hopeless.add(mark); return false; } // where it is not found from here, it is not from further on
    const inner = text.slice(at + length, end), node = made(length === 3 ? "strong" : STYLES[mark]);
    if (length === 3) node.append(inline(made("em"), inner, depth + 1, links));
    else inline(node, inner, depth + 1, links);
    put(node, end + length);
    return true;
  }
  function closing(letter, length, from) {
    for (let next = from; next < text.length; next += 1) {
      if (text[next] === "\\") { next += 1; continue; }
      if (text[next] === "`" && code.has(next)) { next = code.get(next).end - 1; continue; }
      if (text[next] !== letter) continue;
      let end = next;
      while (text[end] === letter) end += 1;
      const run = end - next, fits = run === length || (run === 3 && length < 3);
      const closes = (text[next - 1] ?? " ").trim() && !(letter === "_" && WORD.test(text[end] ?? ""));
      if (fits && closes && end - length > from) return end - length;
      next = end - 1;
    }
    return -1;
  }
}

/** Where each code span begins: its text and where it ends. */
function codeSpans(text) {
  const runs = [...text.matchAll(/(?<!\\)`+/g)], spans = new Map(), lastOf = new Map();
  runs.forEach((run, place) => lastOf.set(run[0].length, place));
  for (let place = 0; place < runs.length; place += 1) {
    const begin = runs[place], length = begin[0].length;
    if (lastOf.get(length) === place) continue;
    let other = place + 1;
    while (runs[other][0].length !== length) other += 1;
    const end = runs[other].index + length, inner = text.slice(begin.index + length, runs[other].index).replace(/\n/g, " ");
    const isPadded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
    spans.set(begin.index, { text: isPadded ? inner.slice(1, -1) : inner, end });
    place = other;
  }
  return spans;
}
/** Each `[` and its `]`, found in one pass. */
function matchBrackets(text, code) {
  const open = [], pairs = new Map();
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === "\\") at += 1;
    else if (code.has(at)) at = code.get(at).end - 1;
    else if (text[at] === "[") open.push(at);
    else if (text[at] === "]" && open.length) pairs.set(open.pop(), at);
  }
  return pairs;
}
function addressAt(text, from) {
  let at = from, depth = 0;
  for (; at < text.length && at - from < 2000; at += 1) {
    if (text[at] <= " " || depth > 8) break;
    if (text[at] === "(") depth += 1;
    else if (text[at] === ")") { if (!depth) break; depth -= 1; }
  }
  const address = text.slice(from, at).replace(/^<(.*)>$/, "$1");
  const title = /[ \t]+(?:"[^"\n]{0,500}"|'[^'\n]{0,500}')[ \t]*/y;
  title.lastIndex = at;
  if (title.test(text)) at = title.lastIndex;
  return text[at] === ")" && address ? { address, end: at + 1 } : null;
}
/** An address without the punctuation that belongs to the sentence around it. */
function withoutTail(address) {
  let end = address.length, open = 0;
  for (const letter of address) open += letter === "(" ? 1 : letter === ")" ? -1 : 0;
  for (; end > 0; end -= 1) {
    const last = address[end - 1];
    if (last === ")" && open < 0) open += 1;
    else if (!".,;:!?'*_~]".includes(last)) break;
  }
  return address.slice(0, end);
}
/** A link; null where the address is not one that may be opened. */
function anchor(address) {
  let url = null;
  try { url = new URL(address); } catch { /* relative, or none */ }
  if (!["http:", "https:", "mailto:"].includes(url?.protocol)) return null;
  const node = made("a", "", address);
  node.href = url.href;
  node.title = url.href;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
  return node;
}

// Code in colours: comments, strings, numbers, keywords, names that are called. One pattern for each family of languages,
// read once from left to right; a language that is not known stays plain. Nodes get text, never HTML.
const MAX_LENGTH = 100_000; // longer code stays plain

const words = (text) => new Set(text.split(" "));
const STRING = String.raw`"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?`;
const NUMBER = String.raw`\b(?:0[xX][\da-fA-F_]+|0[bB][01_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)\w*`;
const WORD = String.raw`[\p{L}_$][\p{L}\p{N}_$]*`;
const C_COMMENT = String.raw`//[^\n]*|/\*[^]*?(?:\*/|$(?![^]))`;
const HASH_COMMENT = String.raw`#[^\n]*`;

function family({ comment = "(?!)", string = STRING, extra = "(?!)", word = WORD, keywords, ignoreCase = false }) {
  const source = `(?<comment>${comment})|(?<string>${string})|(?<meta>${extra})|(?<number>${NUMBER})|(?<word>${word})`;
  return { pattern: new RegExp(source, "gmu"), keywords: words(keywords), ignoreCase };
}

const C_WORDS = "auto bool break case char class const constexpr continue default delete do double else enum extern false "
  + "final float for friend goto if inline int long namespace new nullptr operator override private protected public return "
  + "short signed sizeof static struct switch template this throw true try typedef typename union unsigned using virtual "
  + "void volatile while catch NULL";
const FAMILIES = {
  python: family({
    comment: HASH_COMMENT,
    string: String.raw`[rbfuRBFU]{0,2}(?:"""[^]*?(?:"""|$(?![^]))|'''[^]*?(?:'''|$(?![^]))|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)`,
    extra: String.raw`^[ \t]*@[\w.]+`,
    keywords: "and as assert async await break case class continue def del elif else except False finally for from global if "
      + "import in is lambda match None nonlocal not or pass raise return self True try while with yield",
  }),
  javascript: family({
    comment: C_COMMENT,
    string: `${STRING}|${String.raw`${"`"}(?:\\.|[^${"`"}\\])*${"`"}?`}`,
    keywords: "abstract any as async await boolean break case catch class const continue default delete do else enum export "
      + "extends false finally for from function get if implements import in instanceof interface let new null number of "
      + "private protected public readonly return set static string super switch this throw true try type typeof undefined "
      + "var void while yield",
  }),
  c: family({ comment: C_COMMENT, extra: String.raw`^[ \t]*#[ \t]*\w+`, keywords: C_WORDS }),
  java: family({
    comment: C_COMMENT,
    extra: String.raw`@\w+`,
    keywords: `${C_WORDS} abstract as base boolean byte data decimal extends finally foreach fun get implements import in `
      + "instanceof interface internal is let lock native null object open out package params readonly record ref sealed set "
      + "string super suspend synchronized throws transient val var when where yield async await func guard let nil protocol self",
  }),
  rust: family({
    comment: C_COMMENT,
    string: String.raw`"(?:\\[^]|[^"\\])*"?|'(?:\\.|[^'\\\n])'`,
    extra: String.raw`#!?\[[^\]\n]{0,200}\]`,
    keywords: "as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move "
      + "mut pub ref return self Self static struct super trait true type unsafe use where while bool char f32 f64 i8 i16 i32 "
      + "i64 isize str String u8 u16 u32 u64 usize Vec Option Some None Result Ok Err",
  }),
  go: family({
    comment: C_COMMENT,
    string: `${STRING}|${"`[^`]*`?"}`,
    keywords: "bool break byte case chan const continue default defer else error fallthrough false float64 for func go goto if "
      + "import int int64 interface iota map nil package range return rune select string struct switch true type uint var",
  }),
  ruby: family({
    comment: HASH_COMMENT,
    extra: String.raw`[:@$]{1,2}[\p{L}_]\w*`,
    keywords: "alias and begin break case class def do else elsif end ensure false for if in module next nil not or redo rescue "
      + "return self super then true undef unless until when while yield echo function foreach use namespace new public private",
  }),
  bash: family({
    comment: String.raw`(?<=^|[ \t;])#[^\n]*`,
    string: String.raw`"(?:\\[^]|[^"\\])*"?|'[^']*'?`,
    extra: String.raw`\$(?:\w+|\{[^}\n]{0,200}\}|[?#@*!$-])`,
    keywords: "case do done elif else esac export fi for function if in local return select then until while set unset source "
      + "cd echo exit sudo",
  }),
  sql: family({
    comment: String.raw`--[^\n]*|/\*[^]*?(?:\*/|$(?![^]))`,
    keywords: "add all alter and as asc between by case create cross default delete desc distinct drop else end exists foreign "
      + "from full group having if in index inner insert into is join key left like limit not null offset on or order outer "
      + "primary references right select set table then union unique update values view when where with integer text varchar",
    ignoreCase: true,
  }),
  json: family({ keywords: "true false null" }),
  config: family({
    comment: String.raw`(?<=^|[ \t])[#;][^\n]*`,
    extra: String.raw`^[ \t]*(?:\[[^\]\n]*\]+|(?:- )?[\w.-]+(?=[ \t]*[:=]))`,
    keywords: "true false null yes no on off FROM RUN COPY CMD ENTRYPOINT ENV WORKDIR EXPOSE ARG",
  }),
  markup: family({
    comment: String.raw`<!--[^]*?(?:-->|$(?![^]))`,
    string: String.raw`(?<==)(?:"[^"]*"?|'[^']*'?)`,
    extra: String.raw`</?[\w:-]+|/?>|&[#\w]+;|<[!?][^>\n]{0,500}>`,
    keywords: "",
  }),
  css: family({
    comment: String.raw`/\*[^]*?(?:\*/|$(?![^]))`,
    extra: String.raw`(?<![\w-])(?:[@.#][\w-]+|[\w-]+(?=[ \t]{0,9}:))`,
    keywords: "important inherit initial none auto",
  }),
  diff: family({ comment: "^(?:@@|---|\\+\\+\\+|diff|index)[^\\n]*", string: "^\\+[^\\n]*", extra: "^-[^\\n]*", keywords: "" }),
};
const NAMES = {
  python: "python py python3 pycon", javascript: "javascript js jsx typescript ts tsx mjs node", c: "c h cpp c++ cc hpp cuda cu objc glsl",
  java: "java csharp cs c# kotlin kt scala swift dart", rust: "rust rs", go: "go golang", ruby: "ruby rb php perl pl lua r julia",
  bash: "bash sh shell zsh console", sql: "sql sqlite postgresql mysql", json: "json jsonl json5 jsonc",
  config: "yaml yml toml ini conf properties dockerfile makefile env", markup: "html xml svg vue xhtml", css: "css scss less", diff: "diff patch",
};
const FAMILY_OF = new Map(Object.entries(NAMES).flatMap(([name, all]) => all.split(" ").map((one) => [one, FAMILIES[name]])));

/** Sets `code` as the text of `node`, in spans of the classes comment, string, meta, number, keyword and call. */
export function highlight(node, code, language) {
  const known = FAMILY_OF.get(language.toLowerCase());
  if (!known || code.length > MAX_LENGTH) { node.textContent = code; return; }
  let plain = 0;
  for (const match of code.matchAll(known.pattern)) {
    const kind = kindOf(match, known, code);
    if (!kind) continue;
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = match[0];
    node.append(code.slice(plain, match.index), span);
    plain = match.index + match[0].length;
  }
  node.append(code.slice(plain));
}

function kindOf(match, known, code) {
  const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
  if (kind !== "word") return kind;
  const word = known.ignoreCase ? match[0].toLowerCase() : match[0];
  if (known.keywords.has(word)) return "keyword";
  return code[match.index + match[0].length] === "(" ? "call" : null;
}

// The conversation as it is seen: one node a message, made anew only where the message has changed, and what a screen
// reader is given of an answer while it is written.
import { renderMarkdown } from "./markdown.js";
import { mediaNode } from "./media.js";

const $ = (id) => document.getElementById(id);
const main = document.querySelector("main"), log = $("log");
const nodes = new Map(); // message id: {node, stamp}

export function element(tag, className = "", text = null) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  return made;
}
function button(act, text, label = "") {
  const made = element("button", "", text);
  made.type = "button";
  made.dataset.act = act;
  if (label) { made.setAttribute("aria-label", label); made.title = label; }
  return made;
}

// The log follows the newest words, also when it grows or shrinks, unless the reader has scrolled up.
let following = true;
export function follow(again = false) {
  following ||= again;
  if (following) main.scrollTop = main.scrollHeight;
}
main.addEventListener("scroll", () => { following = main.scrollHeight - main.scrollTop - main.clientHeight < 80; });
const resized = new ResizeObserver(() => follow());
resized.observe(main);
resized.observe(log);

/** Shows the messages of `path`, each with `place` and `count` of its versions; `busy` forbids what would ask the model. */
export function showMessages(path, { busy }) {
  $("empty").hidden = path.length > 0;
  log.classList.toggle("busy-chat", busy);
  const shown = new Set(path.map(({ message }) => message.id));
  for (const [id, { node }] of nodes) if (!shown.has(id)) { node.remove(); nodes.delete(id); }
  let before = $("empty");
  for (const step of path) {
    const { id, state, text, error, refusal } = step.message;
    const stamp = JSON.stringify([state, state === "writing" ? 0 : text, error, refusal, step.place, step.count]);
    let known = nodes.get(id);
    if (known?.stamp !== stamp) {
      const node = step.message.role === "user" ? userTurn(step) : answerTurn(step);
      if (known) {
        const act = known.node.contains(document.activeElement) && document.activeElement.dataset.act;
        known.node.replaceWith(node);
        if (act) node.querySelector(`[data-act="${act}"]:not(:disabled)`)?.focus();
      }
      known = { node, stamp };
      nodes.set(id, known);
    } else if (state === "writing") showText(step.message);
    if (before.nextSibling !== known.node) before.after(known.node);
    before = known.node;
  }
  for (const one of log.querySelectorAll("[data-act=retry], [data-act=edit]")) one.disabled = busy;
}

/** Shows what an answer says by now. */
export function showText(answer) {
  const known = nodes.get(answer.id);
  if (known) renderMarkdown(known.node.querySelector(".text"), answer.text);
}

function versions({ place, count }) {
  if (count < 2) return [];
  const back = button("back", "‹", "Version before"), next = button("next", "›", "Next version");
  back.disabled = place === 0;
  next.disabled = place === count - 1;
  const number = element("span", "place", `${place + 1}/${count}`);
  number.setAttribute("aria-label", `Version ${place + 1} of ${count}`);
  return [back, number, next];
}
function turn(step, className, ...parts) {
  const node = element("article", `turn ${className}`), acts = element("div", "acts");
  node.dataset.id = step.message.id;
  node.append(...parts.filter(Boolean));
  acts.append(...versions(step));
  node.append(acts);
  return [node, acts];
}

function userTurn(step) {
  const { text, media } = step.message, row = element("div", "media"), said = element("p", "text", text);
  row.append(...media.map((one) => mediaNode(one, "attached")));
  said.dir = "auto";
  const [node, acts] = turn(step, "user", element("p", "unseen", "You"), media.length ? row : null, text ? said : null);
  acts.append(button("edit", "Edit"), ...(text ? [button("copy", "Copy")] : []));
  return node;
}

function answerTurn(step) {
  const { state, text, refusal, model } = step.message, said = element("div", "text");
  const who = element("p", "who", model);
  who.dir = "auto";
  renderMarkdown(said, text);
  const failed = (state === "failed" || state === "broken") && !refusal;
  const [node, acts] = turn(step, "assistant", who, said, refusal ? blocked(text, refusal) : failed ? fault(step.message) : note(step.message));
  node.classList.toggle("busy", state === "writing");
  if (state === "writing") node.setAttribute("aria-busy", "true");
  else {
    if (text) acts.append(button("copy", "Copy"));
    if (!failed) acts.append(button("retry", "Try again", "Try again: another answer to the same message"));
  }
  return node;
}
function note({ state, reason, text }) {
  const words = state === "stopped" ? "Stopped." : state === "writing" ? "" : reason === "length" ? "Cut off: the limit of tokens is reached."
    : text.trim() ? "" : "The model has nothing to say.";
  return words && element("p", "note", words);
}
function blocked(text, refusal) {
  const box = element("div", "blocked"), head = element("p", "", text ? "Cut off here and blocked by the guard" : "Blocked by the guard");
  const why = element("p", "why", refusal);
  why.dir = "auto";
  box.setAttribute("role", "note");
  box.setAttribute("aria-label", "Blocked by the guard");
  box.append(head, why);
  if (!text) box.append(element("p", "aside", "This message and its answer are left out of what the model reads from here on."));
  return box;
}
function fault({ state, error, text }) {
  const box = element("div", "error");
  box.append(element("p", "", `${state === "broken" && text ? "Broken off. " : ""}${error}`), button("retry", "Try again"));
  return box;
}

// The log itself is not read out, or each word would be, twice. Whole sentences of the answer go into a region of their own.
let spokenUpTo = 0;
const END_OF_SENTENCE = /[.!?…](?=\s)|[。！？।॥؟۔\n]/g;
export function beginSpeaking() {
  spokenUpTo = 0;
  $("spoken").replaceChildren();
}
/** Gives the sentences that have ended since to screen readers; all that is left with `whole`. */
export function speak(text, whole = false) {
  let end = whole ? text.length : spokenUpTo;
  if (!whole) for (const match of text.slice(spokenUpTo).matchAll(END_OF_SENTENCE)) end = spokenUpTo + match.index + 1;
  const words = text.slice(spokenUpTo, end).replace(/[*_`#|>~]+/g, " ").trim();
  spokenUpTo = end;
  if (!words) return;
  const line = element("p", "", words);
  line.dir = "auto";
  $("spoken").append(line);
  while ($("spoken").childNodes.length > 20) $("spoken").firstChild.remove();
}
/** One line that screen readers read, and nobody sees. */
export function announce(words) { $("status").textContent = words; }

// The page: which conversation is open, what is sent, what comes back. All of a conversation is sent each time, as the
// server remembers nothing. Each step is kept before it is shown, so that closing the page at any time loses no message.
import { answerOf, hasKey, models, ServerError } from "./api.js";
import * as composer from "./composer.js";
import { askForKey, showDialog } from "./dialogs.js";
import { closeOver, refreshList, showList, startList, toggleList } from "./list.js";
import { mediaPart } from "./media.js";
import * as store from "./store.js";
import * as tabs from "./tabs.js";
import * as view from "./view.js";

const $ = (id) => document.getElementById(id);
const EXAMPLES = ["What is the capital of Japan?", "Was ist 17 + 25?", "¿Cuál es la capital de Perú?", "ما هي عاصمة اليابان؟", "日本の首都はどこですか？"];
const UNREACHABLE = "The server cannot be reached: is it still running?";
const SAVE_MS = 500, WATCH_MS = 5000;
const ANOTHER = { temperature: 0.8 }; // many models answer the same again unless they sample

let chat = { id: "", choices: {} };
let messages = []; // of the open conversation, all versions, in the order of time
let served = []; // names of models
const running = new Map(); // of each answer that this tab is writing: the answer, and what stops it
const chosen = {}; // versions that are shown in this tab: {message: child}

// The open conversation.
function path() {
  const children = new Map(), steps = [];
  for (const message of messages) children.set(message.parent, [...(children.get(message.parent) ?? []), message]);
  for (let parent = null, all; (all = children.get(parent)); parent = steps.at(-1).message.id) {
    const wanted = chosen[parent ?? chat.id] ?? chat.choices?.[parent ?? ""];
    const found = all.findIndex((message) => message.id === wanted), place = found < 0 ? all.length - 1 : found;
    steps.push({ message: all[place], place, count: all.length, all });
  }
  return steps;
}
const beingWritten = () => messages.filter((message) => message.state === "writing");
const isBusy = () => beingWritten().length > 0;

function render() {
  view.showMessages(path(), { busy: isBusy() });
  renderForm();
}
function renderForm() {
  $("stop").hidden = !isBusy();
  $("send").hidden = isBusy();
  $("send").disabled = composer.isEmpty();
}
async function reload() {
  const id = chat.id, read = await store.readChat(id);
  if (id !== chat.id) return null;
  chat = read.chat ?? { id, choices: {} };
  messages = read.messages.map((message) => running.get(message.id)?.answer ?? message);
  document.title = [read.chat?.title, served.length === 1 ? served[0] : "", "Herd"].filter(Boolean).join(" · ");
  render();
  watch();
  return read;
}
// The change is seen at once, so that what is typed meanwhile goes to the right conversation; `loading` is what was kept of it.
let loading = null;
function openChat(id) {
  composer.flush();
  chat = { id, choices: {} };
  messages = [];
  composer.openDraft(id);
  composer.showProblem("");
  view.beginSpeaking();
  render();
  composer.focusText();
  loading = (async () => {
    const read = await reload();
    if (!read) return;
    loading = null;
    composer.showDraft(read.draft);
    if (served.includes(chat.model)) $("models").value = chat.model;
    view.follow(true);
    refreshList();
  })();
  return loading;
}
/** The conversation that the address names; a new one where it names none. */
function idOfAddress() {
  if (!/^#\w+$/.test(location.hash)) history.replaceState(null, "", `#${tabs.newId()}`);
  return location.hash.slice(1);
}
function go(id) {
  history.pushState(null, "", `#${id}`);
  openChat(id);
}
const newChat = () => go(tabs.newId());

// An answer that another tab was writing, and that tab is gone, is marked as broken off.
let watching = 0;
async function watch() {
  clearTimeout(watching);
  const foreign = beingWritten().map(({ id }) => id).filter((id) => !running.has(id));
  if (!foreign.length) return;
  const alive = await tabs.othersWriting(), gone = foreign.filter((id) => !alive.has(id) && !running.has(id));
  if (gone.length) {
    await store.markBroken(gone);
    tabs.tellChange(chat.id);
    reload();
  } else watching = setTimeout(watch, WATCH_MS);
}

// Sending and answering.
async function send() {
  if (loading) await loading;
  const said = composer.content(), { text, media } = said;
  if (isBusy() || composer.isEmpty()) return;
  const edited = messages.find(({ id }) => id === said.edits), leaf = path().at(-1)?.message;
  const question = { id: tabs.newId(), chat: chat.id, parent: (edited ? edited.parent : leaf?.id) ?? null, role: "user", text, media };
  const answer = emptyAnswer(question);
  composer.showProblem("");
  const draft = composer.clear();
  messages = [...messages, question, answer];
  chosen[question.parent ?? chat.id] = question.id;
  await write(answer, () => store.addTurn(question, answer, draft), { said, question });
}
const emptyAnswer = (question) => (
  { id: tabs.newId(), chat: question.chat, parent: question.id, role: "assistant", text: "", model: modelNow(), state: "writing" }
);

async function retry(id) {
  const before = messages.find((message) => message.id === id), question = messages.find((message) => message.id === before?.parent);
  if (!question || isBusy()) return;
  const isEmpty = !before.text && !before.refusal;
  const answer = { ...emptyAnswer(question), ...(isEmpty && { id: before.id }) }; // nothing is lost of one without words
  messages = [...messages.filter((message) => message.id !== answer.id), answer];
  chosen[question.id] = answer.id;
  await write(answer, () => store.addAnswer(answer), { more: before.state === "done" ? ANOTHER : {} });
}

/** Writes an answer from the server's stream, once `keep()` has kept what it answers. */
async function write(answer, keep, { said = null, question = null, more = {} }) {
  const stopper = new AbortController();
  running.set(answer.id, { answer, stopper });
  view.beginSpeaking();
  render();
  view.follow(true);
  try {
    await keep();
  } catch (error) {
    running.delete(answer.id);
    if (said) composer.putBack(said);
    composer.showProblem(`Not sent, as this browser cannot keep it (${error.message}): delete old conversations.`);
    await reload();
    return;
  }
  tabs.tellChange(answer.chat, said?.text);
  refreshList();
  let savedAt = Date.now(), refused = null;
  try {
    if (!served.length) await connect();
    answer.model = modelNow(answer.model);
    const body = { model: answer.model, messages: await historyOf(answer), ...more };
    for await (const part of answerOf(body, stopper.signal)) {
      answer.text += part.text ?? "";
      answer.refusal = part.refusal ?? answer.refusal;
      answer.reason = part.reason ?? answer.reason;
      drawSoon(answer);
      if (Date.now() - savedAt > SAVE_MS) {
        savedAt = Date.now();
        store.saveAnswer({ ...answer }).then((isThere) => { if (isThere) tabs.tellChange(answer.chat); else stopper.abort(); }, () => {});
      }
    }
    answer.state = "done";
  } catch (error) {
    if (error.name === "AbortError") answer.state = "stopped";
    else {
      answer.state = answer.text ? "broken" : "failed";
      answer.error = error instanceof ServerError ? error.message : error instanceof TypeError ? UNREACHABLE : `Error: ${error.message}`;
      if (error.status === 404) served = []; // another model is served by now
      if (question && !answer.text && error.isFinal) refused = error.message;
    }
  }
  running.delete(answer.id);
  if (refused && chat.id === answer.chat) await giveBack(question, answer, said, refused);
  else await store.saveAnswer(answer).catch(() => composer.showProblem("This browser's storage is full: the answer is not kept."));
  tabs.tellChange(answer.chat);
  if (chat.id === answer.chat) {
    await reload();
    view.speak(answer.text, true);
    view.announce(outcome(answer, refused));
    if (!document.activeElement || document.activeElement === document.body) composer.focusText();
  }
  refreshList();
}
function outcome({ state, refusal, error }, refused) {
  if (refused) return "";
  if (refusal) return `Blocked by the guard. ${refusal}`;
  return state === "done" ? "Answer complete" : state === "stopped" ? "Stopped" : error;
}
// The server would refuse it again with the next message, so it goes back into the form, to be changed.
async function giveBack(question, answer, said, reason) {
  await store.takeBack(question, answer, composer.putBack(said));
  delete chosen[question.parent ?? chat.id];
  composer.showProblem(`Not sent: ${reason}`);
}

/** What the model reads: the messages up to `answer`, as the API takes them, less what the guard blocked whole. */
async function historyOf(answer) {
  const byId = new Map((await store.readChat(answer.chat)).messages.map((message) => [message.id, message]));
  const line = [];
  for (let one = byId.get(answer.parent), after = answer; one; after = one, one = byId.get(one.parent)) {
    const isBlocked = (message) => message.role === "assistant" && message.refusal && !message.text;
    if (!isBlocked(one) && !(one.role === "user" && isBlocked(after))) line.unshift(one);
  }
  return Promise.all(line.map(async ({ role, text, media = [] }) => {
    if (!media.length) return { role, content: text };
    const parts = await Promise.all(media.map(mediaPart));
    return { role, content: text ? [...parts, { type: "text", text }] : parts };
  }));
}

let drawing = 0;
function drawSoon(answer) {
  if (chat.id !== answer.chat) return;
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    if (answer.state !== "writing" || chat.id !== answer.chat) return;
    view.showText(answer);
    view.speak(answer.text);
  });
}
function stop() {
  for (const { id } of beingWritten()) {
    if (running.has(id)) running.get(id).stopper.abort();
    else tabs.tellStop(id);
  }
}

// The server.
function modelNow(wanted = $("models").value) { return served.includes(wanted) ? wanted : served.includes($("models").value) ? $("models").value : served[0] ?? ""; }
async function connect() {
  served = await models();
  const wanted = chat.model ?? $("models").value;
  $("models").replaceChildren(...served.map((name) => new Option(name, name)));
  $("models").value = served.includes(wanted) ? wanted : served[0];
  $("models").hidden = served.length < 2;
  $("model").hidden = !$("models").hidden;
  $("model").textContent = $("model").title = served[0];
  document.title = [chat.title, served.length === 1 ? served[0] : "", "Herd"].filter(Boolean).join(" · ");
}
async function reconnect() {
  try {
    await connect();
    if ($("problem").textContent === UNREACHABLE) composer.showProblem("");
  } catch (error) {
    $("model").textContent = "not connected";
    composer.showProblem(error instanceof ServerError ? `The server answers: ${error.message}` : UNREACHABLE);
  }
  $("key").hidden = !hasKey();
}

// What is pressed.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not on HTTPS
    const field = view.element("textarea", "unseen");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  view.announce("Copied");
}
const ACTS = {
  copy: (message) => copy(message.text),
  "copy-code": (_, pressed) => copy(pressed.closest("figure").querySelector("code").textContent),
  edit: (message) => { if (!isBusy()) composer.edit(message); },
  retry: (message) => retry(message.id),
  back: (message) => choose(message, -1),
  next: (message) => choose(message, 1),
};
async function choose(message, by) {
  const { all, place } = path().find((step) => step.message.id === message.id);
  const next = all[place + by];
  if (!next) return;
  chosen[message.parent ?? chat.id] = next.id;
  render();
  document.querySelector(`[data-id="${next.id}"] [data-act="${by < 0 ? "back" : "next"}"]:not(:disabled)`)?.focus();
  await store.changeChat(chat.id, ({ choices }) => ({ choices: { ...choices, [message.parent ?? ""]: next.id } }));
}
$("log").addEventListener("click", ({ target }) => {
  const pressed = target.closest("[data-act]"), message = messages.find(({ id }) => id === pressed?.closest(".turn")?.dataset.id);
  if (message) ACTS[pressed.dataset.act](message, pressed);
});
function editLast() {
  const last = path().findLast(({ message }) => message.role === "user");
  if (last) ACTS.edit(last.message);
}
function retryLast() {
  const last = path().at(-1)?.message;
  if (last?.role === "assistant") retry(last.id);
}

const SHORTCUTS = { KeyO: newChat, KeyS: toggleList, KeyE: editLast, KeyY: retryLast };
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const mod = (event.ctrlKey || event.metaKey) && !event.altKey;
  if (mod && event.shiftKey && SHORTCUTS[event.code]) { event.preventDefault(); SHORTCUTS[event.code](); }
  else if (mod && event.key === "/") { event.preventDefault(); showDialog($("help")); }
  else if (event.key === "Escape" && !event.isComposing) {
    if (closeOver()) $("list-button").focus();
    else if (isBusy()) stop();
    else { if (composer.isEditing()) composer.cancelEdit(); $("text").focus(); }
  }
});
$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("text").addEventListener("keydown", (event) => {
  // While an input method composes a word, Enter chooses it.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  if (event.key === "ArrowUp" && composer.isEmpty() && !composer.isEditing()) { event.preventDefault(); editLast(); }
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", newChat);
$("help-button").addEventListener("click", () => showDialog($("help")));
$("key").addEventListener("click", async () => { if (await askForKey("Another key, or none.")) reconnect(); });
for (const example of EXAMPLES) {
  const made = view.element("button", "", example);
  made.type = "button";
  made.dir = "auto";
  made.addEventListener("click", () => { composer.setText(example); send(); });
  $("examples").append(made);
}

// Other tabs, and the network.
tabs.declareWriting(() => [...running.keys()]);
tabs.onStop(({ answer }) => running.get(answer)?.stopper.abort());
tabs.onChange(async ({ chat: changed, sent }) => {
  refreshList();
  if (changed !== chat.id) return;
  const said = composer.content();
  if (sent && said.text === sent && !said.edits) composer.clear(); // the same draft was shown there, and has been sent
  await reload();
});
addEventListener("online", reconnect);
addEventListener("popstate", () => openChat(idOfAddress()));

const isKept = await store.openStore();
composer.startComposer({ changed: renderForm, saved: refreshList });
startList({ open: go, current: () => chat.id, deleted: (id) => { if (id === chat.id) newChat(); } });
await openChat(idOfAddress());
if (!isKept) composer.showProblem("This browser keeps nothing here: conversations are gone when the page is closed.");
await reconnect();

// The form below the conversation: text, pictures and videos by picker, paste and drop; and the draft, which survives
// a reload. A message that is edited is brought here, and the draft before it comes back afterwards.
import { mediaNode, readFile } from "./media.js";
import { saveDraft } from "./store.js";
import { element } from "./view.js";

const $ = (id) => document.getElementById(id);
const form = document.querySelector("#composer"), field = $("text");
const SAVE_MS = 300;
let chat = "", media = [], edits = null, kept = null, timer = 0, touched = false;
let changed = () => {}, saved = () => {};

/** `changed()` is called when what is in the form has changed, `saved()` when the draft has been kept. */
export function startComposer(handlers) {
  ({ changed, saved } = handlers);
  field.addEventListener("input", touch);
  field.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].filter((file) => /^(image|video)\//.test(file.type));
    if (files.length) { event.preventDefault(); attach(files); }
  });
  $("attach").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async () => { const files = [...$("file").files]; $("file").value = ""; await attach(files); });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      if (![...event.dataTransfer?.types ?? []].includes("Files")) return;
      event.preventDefault();
      form.classList.add("drop");
    });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) form.classList.remove("drop"); });
  document.addEventListener("drop", (event) => {
    form.classList.remove("drop");
    if (!event.dataTransfer?.files.length) return; // text that is dragged into the field
    event.preventDefault();
    attach([...event.dataTransfer.files]);
  });
  $("edit-cancel").addEventListener("click", () => { cancelEdit(); focusText(); });
  addEventListener("pagehide", flush);
}

/** What would be sent: `{text, media, edits}`. */
export const content = () => ({ text: field.value.trim(), media, edits });
export const isEmpty = () => !field.value.trim() && !media.length;
export const isEditing = () => edits !== null;

// On a phone the focus would open the keyboard over the answer.
export function focusText() { if (matchMedia("(pointer: fine)").matches) field.focus(); }

/** Goes to another conversation, with the text that this tab has kept of its draft. */
export function openDraft(id) {
  clearTimeout(timer);
  timer = 0;
  touched = false;
  chat = id;
  fill({ text: ownText() ?? "" });
  resize();
}
/** Shows the draft that was read meanwhile, unless something has been written since. */
export function showDraft(draft) {
  if (touched || !draft) return;
  fill({ ...draft, text: ownText() ?? draft.text }); // the last letters before a reload are in the tab's storage only
  resize();
}
/** The form is empty, or holds the draft from before an edit, which is returned. */
export function clear() {
  clearTimeout(timer);
  timer = 0;
  const draft = kept && { ...kept, chat, updated: Date.now() };
  fill(draft ?? {});
  keepOwn();
  resize();
  return draft;
}
/** Puts what was refused back, before what has been written since; an edit comes back as one. Returns the draft that this is. */
export function putBack(content) {
  if (content.edits) fill({ ...content, kept: isEmpty() ? null : { text: field.value, media } });
  else {
    media = [...content.media, ...media];
    field.value = [content.text, field.value].filter(Boolean).join("\n");
    showMedia();
  }
  keepOwn();
  resize();
  return draftNow();
}
export function setText(text) { field.value = text; touch(); }
/** Brings a message into the form to be sent anew. */
export function edit(message) {
  if (!edits) kept = isEmpty() ? null : { text: field.value, media };
  fill({ text: message.text, media: message.media, edits: message.id, kept });
  touch();
  field.focus();
}
export function cancelEdit() {
  fill(kept ?? {});
  touch();
}
function fill({ text = "", media: files = [], edits: edited = null, kept: before = null }) {
  field.value = text;
  [media, edits, kept] = [[...files], edited, before];
  $("editing").hidden = !edits;
  showMedia();
}

// The draft: the text at once in the tab's own storage, all of it soon in the database.
const draftNow = () => ({ chat, text: field.value, media, edits, kept, updated: Date.now() });
function touch() {
  touched = true;
  keepOwn();
  clearTimeout(timer);
  timer = setTimeout(flush, SAVE_MS);
  resize();
}
/** Keeps the draft now if it has changed. */
export async function flush() {
  if (!timer) return;
  clearTimeout(timer);
  timer = 0;
  try { await saveDraft(draftNow()); } catch { showProblem("This browser's storage is full: the draft is in this tab only."); }
  saved();
}
function keepOwn() {
  try { sessionStorage.setItem("draft", JSON.stringify({ chat, text: field.value })); } catch { /* storage is switched off */ }
}
function ownText() {
  try {
    const own = JSON.parse(sessionStorage.getItem("draft"));
    return own?.chat === chat ? own.text : null;
  } catch { return null; }
}

async function attach(files) {
  showProblem("");
  const here = chat;
  for (const file of files) {
    try {
      const one = await readFile(file);
      if (chat === here) media.push(one);
    } catch (error) {
      showProblem(error.message);
    }
  }
  touch();
  await flush(); // what is shown is kept
  showMedia();
  focusText();
}
function showMedia() {
  $("waiting").replaceChildren(...media.map((one, place) => {
    const figure = element("figure"), remove = element("button", "", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${one.kind === "video" ? "video" : "picture"} ${place + 1}`);
    remove.addEventListener("click", () => { media = media.filter((other) => other !== one); showMedia(); touch(); focusText(); });
    figure.append(mediaNode(one, "to be sent"), remove);
    return figure;
  }));
}

export function showProblem(message) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
}
function resize() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
  changed();
}

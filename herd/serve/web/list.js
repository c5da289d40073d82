// The list of conversations: open, rename, delete. Beside the conversation where there is room, else over it.
import { confirmed } from "./dialogs.js";
import { allChats, changeChat, removeChat } from "./store.js";
import { tellChange } from "./tabs.js";
import { element } from "./view.js";

const $ = (id) => document.getElementById(id);
const wide = matchMedia("(min-width: 56rem)");
let open = () => {}, current = () => null, deleted = () => {}, renaming = null;

/** `open(id)` shows a conversation, `current()` is the id of the one that is shown, `deleted(id)` one is gone. */
export function startList(handlers) {
  ({ open, current, deleted } = handlers);
  showList(wide.matches);
  wide.addEventListener("change", () => showList(wide.matches));
  $("list-button").addEventListener("click", () => toggleList());
  $("shade").addEventListener("click", () => showList(false));
  return refreshList();
}
export function showList(shown) {
  $("list").hidden = !shown;
  $("shade").hidden = !shown || wide.matches;
  $("list-button").setAttribute("aria-expanded", String(shown));
}
export function toggleList() {
  showList($("list").hidden);
  if (!$("list").hidden) ($("list").querySelector("[aria-current]") ?? $("list").querySelector("button"))?.focus();
}
/** Closes the list where it covers the conversation; whether it did. */
export function closeOver() {
  const closes = !$("list").hidden && !wide.matches;
  if (closes) showList(false);
  return closes;
}

export async function refreshList() {
  const chats = await allChats();
  if (renaming) return; // the field would lose what is typed
  const focused = document.activeElement?.closest?.("#chats [data-act]");
  const place = focused && [focused.closest("li").dataset.id, focused.dataset.act];
  $("chats").replaceChildren(...chats.map(row));
  $("no-chats").hidden = chats.length > 0;
  if (place) $("chats").querySelector(`[data-id="${place[0]}"] [data-act="${place[1]}"]`)?.focus();
}
function row(chat) {
  const item = element("li"), title = act("open", chat.title, chat.title), isCurrent = chat.id === current();
  item.dataset.id = chat.id;
  title.dir = "auto";
  if (isCurrent) title.setAttribute("aria-current", "page");
  title.addEventListener("click", () => { closeOver(); open(chat.id); });
  const rename = act("rename", "✎", `Rename “${chat.title}”`), remove = act("delete", "×", `Delete “${chat.title}”`);
  rename.addEventListener("click", () => startRenaming(chat, item));
  remove.addEventListener("click", () => deleteChat(chat));
  item.append(title, ...(chat.isDraft ? [] : [rename]), remove);
  return item;
}
function act(name, text, label) {
  const made = element("button", "", text);
  made.type = "button";
  made.dataset.act = name;
  made.title = label;
  if (text !== label) made.setAttribute("aria-label", label);
  return made;
}

function startRenaming(chat, item) {
  const field = element("input");
  field.value = chat.title;
  field.dir = "auto";
  field.maxLength = 200;
  field.setAttribute("aria-label", "Name of the conversation");
  item.replaceChildren(field);
  field.focus();
  field.select();
  renaming = field;
  const end = async (keep) => {
    if (renaming !== field) return;
    renaming = null;
    const title = field.value.trim();
    if (keep && title && title !== chat.title) {
      await changeChat(chat.id, () => ({ title }));
      tellChange(chat.id);
    }
    await refreshList();
    $("chats").querySelector(`[data-id="${chat.id}"] [data-act=rename]`)?.focus();
  };
  field.addEventListener("keydown", (event) => {
    if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    end(event.key === "Enter");
  });
  field.addEventListener("blur", () => end(true));
}
async function deleteChat(chat) {
  if (!(await confirmed(`Delete “${chat.title}”? It is nowhere else.`, "Delete"))) return;
  await removeChat(chat.id);
  tellChange(chat.id);
  deleted(chat.id);
  await refreshList();
  $("new").focus();
}

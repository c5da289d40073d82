// Conversations, kept in the browser's IndexedDB. A message names the one before it, so a conversation is a tree: another
// version of a message, a second answer, or what two tabs send at once stand side by side, and nothing is overwritten.
// Where the browser keeps nothing, the same tables are in memory until the page is closed.
//
//   chats     id, title, updated, model, choices {message: child that is shown}
//   messages  id, chat, parent, role, text; of the user media [{kind, name, blob}]; of an answer model, state, reason, refusal, error
//   drafts    chat, text, media, edits (the message that is being edited), kept (the draft before that), updated

const TABLES = { chats: "id", messages: "id", drafts: "chat" };
let database = null;
let memory = null;
let opened = () => {};
const opening = new Promise((resolve) => { opened = resolve; });

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("herd", 1);
    request.onupgradeneeded = () => {
      for (const [name, keyPath] of Object.entries(TABLES)) request.result.createObjectStore(name, { keyPath });
      request.transaction.objectStore("messages").createIndex("chat", "chat");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds the storage"));
  });
}

/** Whether what is written outlives the page. */
export async function openStore() {
  try {
    database = await open();
    database.onversionchange = () => database.close();
    return true;
  } catch {
    memory = Object.fromEntries(Object.keys(TABLES).map((name) => [name, new Map()]));
    return false;
  } finally {
    opened();
  }
}

/** Runs `work(tables)` as one step: all of it is kept or nothing, and no other tab comes between. */
function within(work, mode = "readwrite") {
  if (!database && !memory) return opening.then(() => within(work, mode));  // another tab may have news before
  if (memory) return work(inMemory);
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(Object.keys(TABLES), mode);
    let result, fault = null;
    transaction.oncomplete = () => resolve(result);
    transaction.onabort = () => reject(fault ?? transaction.error);
    work(inDatabase(transaction)).then(
      (value) => { result = value; if (mode === "readwrite") transaction.commit(); },
      (error) => { fault = error; try { transaction.abort(); } catch { /* it has aborted by itself */ } },
    );
  });
}
function inDatabase(transaction) {
  const done = (request) => new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  const table = (name) => transaction.objectStore(name);
  return {
    get: (name, key) => done(table(name).get(key)),
    all: (name) => done(table(name).getAll()),
    ofChat: (chat) => done(table("messages").index("chat").getAll(chat)),
    put: (name, value) => done(table(name).put(value)),
    remove: (name, key) => done(table(name).delete(key)),
  };
}
const inMemory = {
  get: async (name, key) => memory[name].get(key),
  all: async (name) => [...memory[name].values()],
  ofChat: async (chat) => [...memory.messages.values()].filter((message) => message.chat === chat).map((message) => ({ ...message })),
  put: async (name, value) => { memory[name].set(value[TABLES[name]], { ...value }); },
  remove: async (name, key) => { memory[name].delete(key); },
};

/** All conversations, the last used first; a draft that was never sent is one too. */
export function allChats() {
  return within(async (tables) => {
    const chats = await tables.all("chats"), known = new Set(chats.map((chat) => chat.id));
    const drafts = (await tables.all("drafts")).filter((draft) => !known.has(draft.chat));
    const unsent = drafts.map((draft) => ({ id: draft.chat, title: `Draft: ${titleOf(draft.text)}`, updated: draft.updated, isDraft: true }));
    return [...chats, ...unsent].sort((one, other) => other.updated - one.updated);
  }, "readonly");
}

/** A conversation, its messages in the order of time, and its draft; undefined what there is not. */
export function readChat(id) {
  return within(async (tables) => ({
    chat: await tables.get("chats", id),
    messages: (await tables.ofChat(id)).sort((one, other) => (one.id < other.id ? -1 : 1)),
    draft: await tables.get("drafts", id),
  }), "readonly");
}

/** The choices of versions without the one below `parent`, where the newest is shown then. */
function without(choices, parent) {
  const { [parent ?? ""]: _, ...others } = choices;
  return others;
}

/** Keeps a message of the user with its answer, which is still empty; the draft that it was is gone. */
export function addTurn(question, answer, draft) {
  return within(async (tables) => {
    const chat = (await tables.get("chats", question.chat)) ?? { id: question.chat, title: titleOf(question.text), choices: {} };
    await tables.put("chats", { ...chat, choices: without(chat.choices, question.parent), model: answer.model, updated: Date.now() });
    await tables.put("messages", question);
    await tables.put("messages", answer);
    await (draft ? tables.put("drafts", draft) : tables.remove("drafts", question.chat));
  });
}

/** Keeps one more answer to a message. */
export function addAnswer(answer) {
  return within(async (tables) => {
    const chat = await tables.get("chats", answer.chat);
    if (!chat) throw new Error("this conversation was deleted in another tab");
    await tables.put("chats", { ...chat, choices: without(chat.choices, answer.parent), updated: Date.now() });
    await tables.put("messages", answer);
  });
}

/** Keeps what an answer is by now. False where it has been deleted meanwhile: it does not come back. */
export function saveAnswer(answer) {
  return within(async (tables) => {
    if (!(await tables.get("messages", answer.id))) return false;
    await tables.put("messages", answer);
    return true;
  });
}

/** Removes a message that the server refused, and its answer, and makes it a draft again. */
export function takeBack(question, answer, draft) {
  return within(async (tables) => {
    await tables.remove("messages", question.id);
    await tables.remove("messages", answer.id);
    if (!(await tables.ofChat(question.chat)).length) await tables.remove("chats", question.chat);
    await tables.put("drafts", draft);
  });
}

/** Marks the answers that were being written when their tab went away. */
export function markBroken(ids) {
  return within(async (tables) => {
    for (const id of ids) {
      const answer = await tables.get("messages", id);
      if (answer?.state === "writing") await tables.put("messages", { ...answer, state: "broken", error: "The page was closed or loaded anew." });
    }
  });
}

export function changeChat(id, change) {
  return within(async (tables) => {
    const chat = await tables.get("chats", id);
    if (chat) await tables.put("chats", { ...chat, ...change(chat) });
  });
}

export function removeChat(id) {
  return within(async (tables) => {
    for (const message of await tables.ofChat(id)) await tables.remove("messages", message.id);
    await tables.remove("chats", id);
    await tables.remove("drafts", id);
  });
}

export function saveDraft(draft) {
  const isEmpty = !draft.text.trim() && !draft.media.length && !draft.edits;
  return within((tables) => (isEmpty ? tables.remove("drafts", draft.chat) : tables.put("drafts", draft)));
}

export function titleOf(text) {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "Pictures";
}

// The other tabs of this page: what one writes the others read again, and an answer whose tab is gone is found out.
// Web Locks would tell who lives, but browsers have them on HTTPS and this machine only.
const ANSWER_MS = 400; // within which a living tab says that it is there

export const id = random();
const channel = new BroadcastChannel("herd");
const listeners = { changed: [], stop: [] };
let writing = () => [];
const censuses = new Set();

export function random() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
/** An id whose order is that of time. */
export const newId = () => Date.now().toString(36).padStart(9, "0") + random();

channel.onmessage = ({ data }) => {
  if (data.kind === "who") channel.postMessage({ kind: "here", to: data.from, writing: writing() });
  else if (data.kind === "here") { if (data.to === id) for (const found of censuses) for (const one of data.writing) found.add(one); }
  else for (const listener of listeners[data.kind] ?? []) listener(data);
};

/** `listener({chat, sent})` is called when another tab has written to a conversation. */
export const onChange = (listener) => listeners.changed.push(listener);
/** `listener({answer})` is called when another tab wants this answer stopped. */
export const onStop = (listener) => listeners.stop.push(listener);
export const tellChange = (chat, sent = null) => channel.postMessage({ kind: "changed", chat, sent });
export const tellStop = (answer) => channel.postMessage({ kind: "stop", answer });
/** `ids()` gives the answers that this tab is writing. */
export const declareWriting = (ids) => { writing = ids; };

/** The answers that other tabs are writing, this one's left out. */
export async function othersWriting() {
  const found = new Set();
  censuses.add(found);
  channel.postMessage({ kind: "who", from: id });
  await new Promise((resolve) => { setTimeout(resolve, ANSWER_MS); });
  censuses.delete(found);
  return found;
}

// The server: the key that it may ask for, its models, an answer as a stream of events.
import { askForKey } from "./dialogs.js";

/** The server answered, and not with an answer. `status` is 0 where it broke off. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
  /** Whether the same message would be refused again. */
  get isFinal() { return this.status >= 400 && this.status < 500 && ![401, 403, 408, 429].includes(this.status); }
}

// The key is kept until the tab is closed; on this device only if the box in the dialog is ticked.
const KEY = "key";
const stores = [() => sessionStorage, () => localStorage];
let key = null;
for (const store of stores) try { key ??= store().getItem(KEY); } catch { /* storage is switched off */ }
export const hasKey = () => Boolean(key);
export function keepKey(given, remember) {
  forgetKey();
  key = given;
  try { stores[remember ? 1 : 0]().setItem(KEY, given); } catch { /* storage is switched off */ }
}
export function forgetKey() {
  key = null;
  for (const store of stores) try { store().removeItem(KEY); } catch { /* storage is switched off */ }
}

async function ask(path, options = {}) {
  const used = key, headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.status !== 401) return response;
  // Another request may have been given a key meanwhile.
  if (key === used && !(await askForKey(used ? "The server does not know this key." : "This server asks for a key."))) return response;
  options.signal?.throwIfAborted();
  return ask(path, options);
}

async function failure(response) {
  const reply = await response.json().catch(() => null);
  return new ServerError(reply?.error?.message || `the server answers ${response.status}`, response.status);
}

/** The names of the models that are served. */
export async function models() {
  const response = await ask("v1/models");
  if (!response.ok) throw await failure(response);
  return (await response.json()).data.map((model) => model.id);
}

/** The parts of an answer as they come: `{text}`, `{refusal}`, `{reason}`. Throws ServerError, TypeError (no network),
    or AbortError. */
export async function* answerOf(body, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok) throw await failure(response);
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(event.error.message, 500);
    const choice = event.choices[0];
    if (choice?.delta.content) yield { text: choice.delta.content };
    if (choice?.delta.refusal) yield { refusal: choice.delta.refusal };
    if (choice?.finish_reason) yield { reason: choice.finish_reason };
  }
  throw new ServerError("The connection broke off before the end of the answer.");
}

// Server-sent events: blocks between blank lines, each `data: …`, which may be cut anywhere by the network.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) if (block.startsWith("data: ")) yield block.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {}); // closes the connection, and so ends the generation
  }
}

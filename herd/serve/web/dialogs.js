// The dialogs: the key of a server that asks for one, a question before something is lost, the keyboard's shortcuts.
import { forgetKey, hasKey, keepKey } from "./api.js";

const $ = (id) => document.getElementById(id);

/** Shows a dialog; resolves to the value of the button that closed it, "" where it was closed by Esc. */
export function showDialog(dialog) {
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
    dialog.showModal();
  });
}
for (const dialog of document.querySelectorAll("dialog")) {
  // Enter presses the one button that submits; the others are plain.
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close(event.submitter?.value ?? "");
  });
  for (const button of dialog.querySelectorAll("button[type=button]")) button.addEventListener("click", () => dialog.close(button.value));
}

let asking = null;
/** Asks for the key, one dialog at a time; whether one was given. */
export function askForKey(reason) {
  asking ??= (async () => {
    $("key-reason").textContent = reason;
    $("key-field").value = "";
    $("forget").hidden = !hasKey();
    const pressed = await showDialog($("key-dialog")), given = $("key-field").value.trim();
    $("key-field").value = "";
    if (pressed === "forget") forgetKey();
    if (pressed === "use" && given) keepKey(given, $("key-remember").checked);
    $("key").hidden = !hasKey();
    return pressed === "use" && Boolean(given);
  })().finally(() => { asking = null; });
  return asking;
}

export async function confirmed(question, action) {
  $("confirm-question").textContent = question;
  $("confirm-yes").textContent = action;
  return (await showDialog($("confirm"))) === "yes";
}

// Light or dark: the system's choice until the button is pressed. A script of its own that runs before the first paint.
"use strict";
(() => {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const NAMES = { "": "as the system", light: "light", dark: "dark" };
  try { root.dataset.theme = localStorage.getItem("theme") ?? ""; } catch { root.dataset.theme = ""; }

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      button.setAttribute("aria-label", `Light or dark: ${NAMES[root.dataset.theme]}`);
      button.title = button.ariaLabel;
    };
    // Each press shows a change: to the other than the system's, to the system's own for good, back to following it.
    button.addEventListener("click", () => {
      const order = system.matches ? ["", "light", "dark"] : ["", "dark", "light"];
      root.dataset.theme = order[(order.indexOf(root.dataset.theme) + 1) % 3];
      try { localStorage.setItem("theme", root.dataset.theme); } catch { /* storage is switched off */ }
      label();
    });
    label();
  });
})();

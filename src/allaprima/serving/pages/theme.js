// Before anything is drawn: the theme that was chosen here, if it isn't the system's.
"use strict";

(() => {
  const NAME = "allaprima.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");

  function chosen() {
    try {
      return localStorage.getItem(NAME);
    } catch {
      return null; // Storage may be forbidden: then the choice lasts as long as the page.
    }
  }

  function keep(theme) {
    try {
      if (theme === null) localStorage.removeItem(NAME);
      else localStorage.setItem(NAME, theme);
    } catch {
      // As above.
    }
  }

  function show(theme) {
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    const button = document.getElementById("theme");
    if (button) button.setAttribute("aria-pressed", String(isDark()));
  }

  function isDark() {
    const theme = document.documentElement.dataset.theme;
    return theme ? theme === "dark" : system.matches;
  }

  show(chosen());
  system.addEventListener("change", () => show(document.documentElement.dataset.theme ?? null));
  document.addEventListener("DOMContentLoaded", () => {
    show(chosen());
    document.getElementById("theme").addEventListener("click", () => {
      const next = isDark() ? "light" : "dark";
      // Back at what the system has, the page follows it again.
      const theme = (next === "dark") === system.matches ? null : next;
      keep(theme);
      show(theme);
    });
  });
})();

"use strict";
// Loaded before anything is shown: the page never flashes in the other theme.

{
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  root.dataset.theme = localStorage.getItem("baton-theme") ?? "";
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (button) button.onclick = () => {
      root.dataset.theme = root.dataset.theme ? "" : dark.matches ? "light" : "dark";
      localStorage.setItem("baton-theme", root.dataset.theme);
    };
  });
}

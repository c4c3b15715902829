// Shared by the views: the data in the page, number formats, the theme, the download.
"use strict";

const data = JSON.parse(document.getElementById("onebyone-data").textContent);
const rowOf = (id) => data.rows.find((row) => row.id === id);
const by = (sizes) => sizes.join("×");
const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// A number to three digits, in the format of the tables of the page.
function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return value.toLocaleString("en");
  if (size < 1e-3 || size >= 1e6) {
    const power = Math.floor(Math.log10(size));
    const raised = [...String(power)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
    return `${Number((value / 10 ** power).toPrecision(3))}·10${raised}`;
  }
  return Number(value.toPrecision(3)).toLocaleString("en");
}

// Seconds in a suitable unit.
function duration(seconds) {
  const [size, unit] = seconds < 1e-3 ? [1e6, "µs"] : seconds < 1 ? [1e3, "ms"] : [1, "s"];
  return `${Number((seconds * size).toPrecision(3))} ${unit}`;
}

// Keys that move along a line or over a grid, for a control that is not a form field.
function onKeys(element, moves) {
  element.addEventListener("keydown", (event) => {
    if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    moves[event.key]();
  });
}

// The theme of the system, until the button changes it.
{
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const update = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    update();
  });
  dark.addEventListener("change", update);
  update();
}

// Print the details of the verification and of the plan in full, because they cannot be opened on paper.
{
  const folded = all("#proof details:not([open]), #plan details:not([open])");
  const open = (whether) => () => folded.forEach((part) => { part.open = whether; });
  addEventListener("beforeprint", open(true));
  addEventListener("afterprint", open(false));
}

// The data as a file.
document.getElementById("download").addEventListener("click", () => {
  const file = new Blob([JSON.stringify(data, null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = "onebyone-comparison.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

"use strict";
// Builds elements. Strings of the data become text nodes and attribute values, never HTML.

const page = {};

page.element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

page.svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "style") for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    else if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────
// 1 is a perfect score as often as a number of examples.
page.score = (value) =>
  value === null || value === undefined ? "–" : Number.isInteger(value) && Math.abs(value) > 1 ? page.count(value) : value.toFixed(4);

page.pValue = (value) => (typeof value !== "number" ? "–" : value < 0.001 ? "< 0.001" : value.toFixed(3));

page.count = (value) => (typeof value === "number" ? value.toLocaleString("en-US") : "–");

// 1e-4 as recipes write it.
page.number = (value) => {
  if (typeof value !== "number") return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return page.count(value);
  const size = Math.abs(value);
  return size && (size < 1e-2 || size >= 1e6) ? value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e") : String(+value.toPrecision(4));
};

page.setting = (value) =>
  value === null || value === undefined ? "–" : typeof value === "number" ? page.number(value)
    : typeof value === "string" ? value : JSON.stringify(value);

page.percent = (share) => (typeof share === "number" ? `${(100 * share).toFixed(share > 0.1 ? 0 : 1)} %` : "–");

page.duration = (seconds) => {
  if (typeof seconds !== "number") return "–";
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
};

page.date = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");

// ── colours ─────────────────────────────────────────────────────────────────────────────────────────────────────────
// Okabe and Ito's palette, which colour-blind people can tell apart; brighter on a dark page.
const PALETTE = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a0d3", "#6b6b6b", "#7a3e9d"],
  dark: ["#56b4e9", "#ff8c4a", "#2fc79a", "#e9a3c9", "#f0c34a", "#9cc9ff", "#b5b5b5", "#c79bea"],
};
// Cividis, from low to high: monotonic in lightness, and made for colour-blind people too.
const CIVIDIS = [[0, 45, 110], [42, 64, 109], [79, 87, 108], [108, 111, 114], [139, 136, 119], [172, 161, 112], [208, 190, 94], [243, 221, 70]];

page.dark = window.matchMedia("(prefers-color-scheme: dark)");
page.color = (number) => PALETTE[page.dark.matches ? "dark" : "light"][number % PALETTE.light.length];
page.paletteSize = PALETTE.light.length;

// The dark end is lighter on a dark page and the light end darker on a light one, so that every line stands out.
page.shade = (share) => {
  const low = page.dark.matches ? 0.22 : 0;
  const high = page.dark.matches ? 1 : 0.86;
  const place = (low + (high - low) * Math.min(1, Math.max(0, share))) * (CIVIDIS.length - 1);
  const index = Math.min(CIVIDIS.length - 2, Math.floor(place));
  const mixed = CIVIDIS[index].map((value, channel) => Math.round(value + (CIVIDIS[index + 1][channel] - value) * (place - index)));
  return `rgb(${mixed.join(",")})`;
};

page.ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ── sections ────────────────────────────────────────────────────────────────────────────────────────────────────────
page.section = (id, title, note, ...children) =>
  page.element("section", { id, "aria-labelledby": `${id}-title` },
    page.element("h2", { id: `${id}-title` }, title), note ? page.element("p", { class: "note" }, note) : null, ...children);

page.facts = (pairs) =>
  page.element("dl", { class: "facts" }, pairs.flatMap(([name, value]) => [page.element("dt", {}, name), page.element("dd", {}, value)]));

page.details = (title, ...children) => page.element("details", {}, page.element("summary", {}, title), ...children);

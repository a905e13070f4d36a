"use strict";
// Reads the data that the page carries, and draws the sections that have any.

const SECTIONS = [
  ["summary", () => "Summary", (data) => [page.summarySection(data)]],
  ["matrix", () => "What varies", (data) => [page.matrixSection(data)]],
  ["leaderboard", () => "Leaderboard", (data) => page.leaderboardSections(data)],
  ["curves", () => "Curves", (data) => [page.curvesSection(data)]],
  ["confusion", () => "Confusion", (data) => [page.confusionSection(data)]],
  ["runs", () => "Runs", (data) => [page.runsSection(data)]],
  ["time", () => "Time and cost", (data) => [page.timeSection(data)]],
  ["data", () => "Data", (data) => [page.dataSection(data)]],
  ["recipe", () => "Recipe", (data) => [page.recipeSection(data)]],
  ["environment", () => "Environment", (data) => [page.environmentSection(data)]],
];

const pending = [];
page.whenShown = (action) => pending.push(action);

page.draw = (data) => {
  page.data = data;
  const states = [...new Set(data.runs.map((run) => run.state))];
  document.getElementById("header").replaceChildren(
    page.element("p", { class: "kicker" }, "sft-dist report"),
    page.element("h1", {}, data.title, data.runs.length === 1 && data.runs[0].name !== data.runs[0].id ? page.element("span", { class: "point" }, ` ${data.runs[0].name}`) : null),
    page.element("p", { class: "by" }, data.runs.length === 1 ? page.element("code", {}, data.runs[0].id) : `${page.count(data.runs.length)} runs`, " · ",
      states.length === 1 ? page.element("span", { class: `state ${states[0]}` }, states[0]) : states.join(", "), ` · ${data.time.slice(0, 16).replace("T", " ")} UTC`));
  const drawn = SECTIONS.map(([id, title, draw]) => [id, title(), draw(data).filter(Boolean)]).filter(([, , sections]) => sections.length);
  document.getElementById("main").replaceChildren(...drawn.flatMap(([, , sections]) => sections));
  document.getElementById("contents").replaceChildren(page.element("ul", {}, drawn.map(([id, title]) => page.element("li", {}, page.element("a", { href: `#${id}` }, title)))));
  document.getElementById("footer").replaceChildren("Made by sft-dist from the files of the run folders; works offline. Charts: uPlot (MIT).");
  pending.splice(0).forEach((action) => action());
};

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

(async () => {
  const packed = document.getElementById("data").textContent;
  if (packed) page.draw(await unpack(packed));
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();

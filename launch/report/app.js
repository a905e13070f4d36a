"use strict";
// Reads the data that the page carries, and draws the sections that have any.

const SECTIONS = [
  ["summary", () => "Summary", (data) => [page.summarySection(data)]],
  ["diagnosis", () => "Diagnosis", (data) => [page.diagnosisSection(data)]],
  ["matrix", () => "What varies", (data) => [page.matrixSection(data)]],
  ["search", () => "Search", (data) => page.searchSections(data)],
  ["leaderboard", () => "Leaderboard", (data) => page.leaderboardSections(data)],
  ["curves", () => "Curves", (data) => [page.curvesSection(data)]],
  ["confusion", () => "Confusion", (data) => [page.confusionSection(data)]],
  ["classes", () => "Classes", (data) => [page.classesSection(data)]],
  ["slices", () => "Slices", (data) => [page.slicesSection(data)]],
  ["calibration", () => "Calibration", (data) => [page.calibrationSection(data)]],
  ["errors", () => "Errors", (data) => [page.errorsSection(data)]],
  ["runs", () => "Runs", (data) => [page.runsSection(data)]],
  ["time", () => "Time and cost", (data) => [page.timeSection(data)]],
  ["data", () => "Data", (data) => [page.dataSection(data)]],
  ["recipe", () => "Recipe", (data) => [page.recipeSection(data)]],
  ["environment", () => "Environment", (data) => [page.environmentSection(data)]],
];

// A section that cannot be drawn, of files that hold what this program never writes, does not hide the others.
function sectionsOf(title, draw, data) {
  try {
    return draw(data).filter(Boolean);
  } catch (error) {
    return [page.element("p", { class: "warning" }, `${title} cannot be drawn: ${error.message}`)];
  }
}

const pending = [];
page.whenShown = (action) => pending.push(action);

page.draw = (data) => {
  page.data = data;
  const states = [...new Set(data.runs.map((run) => run.state))];
  document.getElementById("header").replaceChildren(
    page.element("p", { class: "kicker" }, page.live ? "sft-dist board" : "sft-dist report"),
    page.element("h1", {}, data.title, data.runs.length === 1 && data.runs[0].name !== data.runs[0].id ? page.element("span", { class: "point" }, ` ${data.runs[0].name}`) : null),
    page.element("p", { class: "by" }, data.runs.length === 1 ? page.element("code", {}, data.runs[0].id) : `${page.count(data.runs.length)} runs`, " · ",
      states.length === 1 ? page.element("span", { class: `state ${states[0]}` }, states[0]) : states.join(", "), ` · ${data.time.slice(0, 16).replace("T", " ")} UTC`));
  document.title = data.title;
  page.drawCharts = null;
  const drawn = SECTIONS.map(([id, title, draw]) => [id, title(), sectionsOf(title(), draw, data)]).filter(([, , sections]) => sections.length);
  document.getElementById("main").replaceChildren(...drawn.flatMap(([, , sections]) => sections));
  document.getElementById("contents").replaceChildren(page.element("ul", {}, drawn.map(([id, title]) => page.element("li", {}, page.element("a", { href: `#${id}` }, title)))));
  document.getElementById("footer").replaceChildren("Made by sft-dist from the files of the run folders; works offline. Charts: uPlot (MIT).");
  Object.values(page.charts).forEach((chart) => chart.destroy());
  page.charts = {};
  page.zoomed = false;
  pending.splice(0).forEach((action) => action());
};

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// Draws anew what is already on the screen, and keeps the place in it.
function redraw(data) {
  const open = new Set([...document.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent));
  const { scrollY } = window;
  page.draw(data);
  for (const summary of document.querySelectorAll("summary")) summary.parentNode.open = open.has(summary.textContent);
  window.scrollTo({ top: scrollY, behavior: "instant" });
}

// Once for all that are ever drawn: a listener for each would keep the data of every drawing.
window.addEventListener("beforeprint", () => page.drawCharts?.());

// Colours of charts are computed, not inherited.
page.dark.addEventListener("change", () => page.data && redraw(page.data));

// ── the board: the same page, whose data a server on this machine keeps up to date ──────────────────────────────────────
const POLL_MS = 5000;

function live() {
  page.live = true;
  let tag = null;
  const status = document.getElementById("live");
  const poll = async () => {
    try {
      const response = await fetch("data", { headers: tag ? { "If-None-Match": tag } : {} });
      if (response.status === 200) {
        const data = await response.json();
        tag = response.headers.get("ETag");
        offer({ ...data, time: new Date().toISOString() });
      }
      if (response.ok || response.status === 304) status.textContent = "live";
      else if (response.status === 503) status.textContent = "the runs cannot be read";
      else throw new Error(response.statusText);
    } catch {
      status.textContent = "the board has stopped";
    }
    setTimeout(poll, POLL_MS);
  };

  // Nobody's place is lost: while something on the page has the focus or is zoomed, a button waits.
  function offer(data) {
    const main = document.getElementById("main");
    const busy = page.data && (main.contains(document.activeElement) || page.zoomed);
    const update = () => { status.nextSibling?.remove(); redraw(data); };
    if (!busy) return update();
    status.nextSibling?.remove();
    status.after(page.element("button", { type: "button", class: "quiet", click: update }, "Show new data"));
  }

  return poll();
}

(async () => {
  const packed = document.getElementById("packed").textContent;
  if (packed) page.draw(await unpack(packed));
  else await live();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();

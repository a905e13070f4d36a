"use strict";
// A search: its best trial, what each dimension contributes, slices through the space, and why trials were pruned.

page.searchSections = (data) => (data.searches ?? []).map((search) => {
  const scored = search.trials.filter((trial) => trial.score !== null);
  const best = search.trials.find((trial) => trial.number === search.best);
  const counts = new Map();
  for (const trial of search.trials) counts.set(trial.state, (counts.get(trial.state) ?? 0) + 1);
  const states = [...counts].map(([state, count]) => `${count} ${state}`).join(", ");
  const ended = search.trials.filter((trial) => trial.reason);
  return page.section("search", "Search", `${page.count(search.trials.length)} trials (${states}) by ${search.sampler}, pruning: ${search.pruning}. Every dot is a trial; later ones are darker, the best is larger.`,
    best ? page.element("p", {}, `Best: trial ${best.number}, ${search.metric} ${page.score(best.score)}, ${trialText(best.point)}`) : null,
    Object.keys(search.importance).length ? page.element("p", { class: "note" }, `Importance (PED-ANOVA): ${Object.entries(search.importance).map(([path, share]) => `${path} ${page.percent(share)}`).join(", ")}`) : null,
    scored.length > 1 ? page.element("div", { class: "effects" }, search.dimensions.map((path) => spaceSlice(path, scored, search))) : null,
    ended.length ? page.element("details", {}, page.element("summary", {}, `${page.count(ended.length)} trials were pruned or refused`),
      page.element("ul", {}, ended.map((trial) => page.element("li", {}, `trial ${trial.number} (${trialText(trial.point)}): ${trial.reason}`)))) : null);
});

function trialText(point) {
  return Object.entries(point).map(([path, value]) => `${path.split(".").at(-1)}=${page.setting(value)}`).join(" ");
}

// Every dot is a trial: its value of a dimension, and its score. Later trials are darker.
function spaceSlice(path, trials, search) {
  const width = 300, height = 170, top = 10, bottom = 22, left = 46, right = 14;
  const present = trials.filter((trial) => path in trial.point);
  const across = axis(path, present.map((trial) => trial.point[path]));
  const scores = trials.map((trial) => trial.score);
  const low = Math.min(...scores), high = Math.max(...scores);
  const x = (share) => left + 8 + share * (width - left - right - 16);
  const y = (score) => height - bottom - 6 - (high === low ? 0.5 : (score - low) / (high - low)) * (height - top - bottom - 10);
  const dots = present.map((trial, index) => page.svg("circle", { cx: x(across.place(index) ?? 0.5), cy: y(trial.score), r: trial.number === search.best ? 5 : 3, class: "dot", "fill-opacity": 0.35 + (0.6 * index) / present.length },
    page.svg("title", {}, `trial ${trial.number}: ${trialText(trial.point)}, ${search.metric} ${page.score(trial.score)}`)));
  const scale = [low, high].map((score) => page.svg("text", { x: left - 8, y: y(score) + 4, "text-anchor": "end", class: "tick" }, page.score(score)));
  const ends = across.ticks.filter((_, index) => across.ticks.length <= 4 || index === 0 || index === across.ticks.length - 1);
  const ticks = ends.map(([share, text]) => page.svg("text", { x: x(share), y: height - 6, "text-anchor": "middle", class: "tick" }, clipped(text, 12)));
  return page.element("figure", { class: "effect", "data-key": path },
    page.element("figcaption", {}, page.element("span", { class: "chart-title" }, path)),
    page.svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${search.metric} of ${present.length} trials by ${path}; \`sft-dist search status\` has the numbers.` },
      page.svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis" }), scale, dots, ticks));
}

"use strict";
// What varies between the runs, and what it does: parallel coordinates, and the scores by each setting.

const WIDTH = 960;

page.matrixSection = (data) => {
  const scores = page.bestScores(data);
  if (data.runs.length < 2 || !data.varying.length || !scores || scores.filter((score) => score !== null).length < 2) return null;
  const metric = data.leaderboards[0]?.metric ?? "best validation score";
  const keys = data.varying.filter((key) => new Set(data.runs.map((run) => JSON.stringify(run.point[key]))).size > 1).slice(0, 8);
  return page.section("matrix", "What varies", `Each line is a run, from its settings to its best ${metric} on validation.`,
    parallel(data, keys, scores, metric), page.element("h3", {}, "Effect of each setting"),
    page.element("p", { class: "note" }, `Every dot is a run, the bar is the mean. A setting explains a share of the variance of ${metric} by itself.`),
    page.element("div", { class: "effects" }, effects(data, keys, scores).map((effect) => effectFigure(effect, data, metric))));
};

// An axis: {title, place(run) from 0 to 1, ticks: [[share, text]]}. Numbers that span decades are spaced by their logarithm.
function axis(title, values) {
  const present = values.filter((value) => value !== null && value !== undefined);
  if (present.every((value) => typeof value === "number")) {
    const low = Math.min(...present), high = Math.max(...present);
    const log = low > 0 && high / low >= 20;
    const scaled = (value) => (log ? Math.log(value) : value);
    const share = (value) => (high === low ? 0.5 : (scaled(value) - scaled(low)) / (scaled(high) - scaled(low)));
    const distinct = [...new Set(present)].sort((a, b) => a - b);
    const ticks = distinct.length <= 7 ? distinct : [0, 0.25, 0.5, 0.75, 1].map((part) => (log ? Math.exp(scaled(low) + part * (scaled(high) - scaled(low))) : low + part * (high - low)));
    return { title, place: (run) => (typeof values[run] === "number" ? share(values[run]) : null), ticks: ticks.map((tick) => [share(tick), page.number(tick)]) };
  }
  const names = [...new Set(values.map((value) => page.setting(value)))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const share = (value) => (names.length === 1 ? 0.5 : names.indexOf(page.setting(value)) / (names.length - 1));
  return { title, place: (run) => share(values[run]), ticks: names.slice(0, 12).map((name) => [share(name), name]) };
}

function parallel(data, keys, scores, metric) {
  const height = 300, top = 34, bottom = 14, side = 70;
  const axes = [...keys.map((key) => axis(key, data.runs.map((run) => run.point[key]))), axis(metric, scores)];
  const x = (index) => side + (index * (WIDTH - 2 * side)) / (axes.length - 1);
  const y = (share) => height - bottom - share * (height - top - bottom);
  const readout = page.element("output", { class: "readout" });
  const order = [...data.runs.keys()].filter((run) => scores[run] !== null).sort((a, b) => page.share(scores, a) - page.share(scores, b));
  const lines = order.map((run) => {
    const points = axes.map((each, index) => [x(index), each.place(run)]).filter(([, share]) => share !== null).map(([left, share]) => [left, y(share)]);
    const path = points.map(([left, up], index) => (index ? `C${(points[index - 1][0] + left) / 2},${points[index - 1][1]} ${(points[index - 1][0] + left) / 2},${up} ${left},${up}` : `M${left},${up}`)).join("");
    const text = `${data.runs[run].name}: ${page.score(scores[run])}`;
    return page.svg("path", {
      d: path, class: "run", fill: "none", stroke: page.shade(page.share(scores, run)), "data-run": run,
      pointerenter: (event) => { readout.textContent = text; event.target.parentNode.append(event.target); },
      pointerleave: () => { readout.textContent = ""; },
    }, page.svg("title", {}, text));
  });
  const frame = axes.map((each, index) => page.svg("g", {},
    page.svg("line", { x1: x(index), x2: x(index), y1: y(0), y2: y(1), class: "axis" }),
    page.svg("text", { x: x(index), y: 14, "text-anchor": index === axes.length - 1 ? "end" : index ? "middle" : "start", class: "head" }, lastWords(each.title, keys)),
    each.ticks.map(([share, text]) => page.svg("text", { x: x(index) + (index === axes.length - 1 ? 6 : -6), y: y(share) + 4, "text-anchor": index === axes.length - 1 ? "start" : "end", class: "tick" }, clipped(text, 14)))));
  const svg = page.svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, class: "parallel", role: "img", "aria-label": `Parallel coordinates of ${data.runs.length} runs over ${keys.join(", ")} and ${metric}; the table of runs has the same numbers.` }, page.svg("g", {}, lines), frame);
  return page.element("figure", {}, page.element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Parallel coordinates" }, svg),
    page.element("figcaption", {}, page.element("span", { class: "ramp", "aria-hidden": "true" }), ` ${metric}, low to high`, readout));
}

function lastWords(key, keys) {
  const last = key.split(".").at(-1);
  return keys.filter((other) => other.split(".").at(-1) === last).length > 1 ? key : last;
}

function clipped(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

// ── effects ─────────────────────────────────────────────────────────────────────────────────────────────────────────
// The share of the variance between runs that lies between the values of a setting: eta squared of a one-way analysis.
function effects(data, keys, scores) {
  const runs = [...data.runs.keys()].filter((run) => scores[run] !== null);
  const mean = average(runs.map((run) => scores[run]));
  const total = runs.reduce((sum, run) => sum + (scores[run] - mean) ** 2, 0);
  return keys.map((key) => {
    const groups = new Map();
    for (const run of runs) {
      const value = data.runs[run].point[key];
      const text = page.setting(value);
      if (!groups.has(text)) groups.set(text, { value, text, runs: [], scores: [] });
      groups.get(text).runs.push(run);
      groups.get(text).scores.push(scores[run]);
    }
    const between = [...groups.values()].reduce((sum, group) => sum + group.scores.length * (average(group.scores) - mean) ** 2, 0);
    const sorted = [...groups.values()].sort((a, b) => (typeof a.value === "number" && typeof b.value === "number" ? a.value - b.value : a.text.localeCompare(b.text)));
    return { key, groups: sorted, explained: total > 0 && groups.size < runs.length ? between / total : null };
  }).sort((a, b) => (b.explained ?? -1) - (a.explained ?? -1));
}

function average(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function effectFigure(effect, data, metric) {
  const width = 300, height = 170, top = 10, bottom = 22, left = 46, right = 8;
  const all = effect.groups.flatMap((group) => group.scores);
  const low = Math.min(...all), high = Math.max(...all);
  const y = (score) => height - bottom - (high === low ? 0.5 : (score - low) / (high - low)) * (height - top - bottom - 8) - 4;
  const step = (width - left - right) / effect.groups.length;
  const x = (index) => left + step * (index + 0.5);
  const labelled = Math.ceil(effect.groups.length / 7);
  const columns = effect.groups.map((group, index) => page.svg("g", {},
    group.scores.map((score, place) => page.svg("circle", { cx: x(index) + jitter(place, step), cy: y(score), r: 3, class: "dot" }, page.svg("title", {}, `${data.runs[group.runs[place]].name}: ${page.score(score)}`))),
    page.svg("line", { x1: x(index) - Math.min(step * 0.35, 16), x2: x(index) + Math.min(step * 0.35, 16), y1: y(average(group.scores)), y2: y(average(group.scores)), class: "mean" }),
    index % labelled === 0 ? page.svg("text", { x: x(index), y: height - 6, "text-anchor": "middle", class: "tick" }, clipped(group.text, 12)) : null));
  const ticks = [low, high].map((score) => page.svg("text", { x: left - 8, y: y(score) + 4, "text-anchor": "end", class: "tick" }, page.score(score)));
  const share = effect.explained === null ? "each value has one run" : `explains ${page.percent(effect.explained)}`;
  const means = effect.groups.map((group) => `${group.text}: ${page.score(average(group.scores))}`).join("; ");
  return page.element("figure", { class: "effect", "data-key": effect.key },
    page.element("figcaption", {}, page.element("span", { class: "chart-title" }, effect.key), page.element("span", { class: "share" }, share)),
    page.svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Mean ${metric} by ${effect.key}: ${means}` },
      page.svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis" }), ticks, columns));
}

// Dots of the same value stand beside each other; the same ones each time.
function jitter(place, step) {
  return (((place * 0.618) % 1) - 0.5) * Math.min(step * 0.5, 22);
}

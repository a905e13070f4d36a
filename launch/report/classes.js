"use strict";
// What the best checkpoint of a classification does well and badly: each class, calibration, errors.

page.classesSection = (data) => {
  const perClass = page.finalOf(data)?.per_class;
  const split = page.splitOf(perClass);
  if (!split || !perClass[split].length) return null;
  const score = (name, title) => ({ title, number: true, better: "min", value: (row) => row[name], cell: (row) => scoreBar(row[name]) });
  return page.section("classes", "Classes", `The best checkpoint on ${split}. A precision is undefined (–) for a class that was never predicted.`, page.table([
    { title: "class", value: (row) => row.label, cell: (row) => page.element("span", { class: "label" }, row.label) },
    { title: "examples", number: true, value: (row) => row.examples, cell: (row) => page.count(row.examples) },
    score("precision", "precision"), score("recall", "recall"), score("f1", "F1"),
  ], perClass[split], { label: "scores of each class", limit: 20 }));
};

function scoreBar(share) {
  if (typeof share !== "number") return "–";
  return page.element("span", { class: "score-bar", style: { "--share": `${100 * share}%` } }, page.score(share));
}

// ── calibration ─────────────────────────────────────────────────────────────────────────────────────────────────────
const CALIBRATION = [
  ["ece", "ECE"], ["ece_null_floor", "ECE of perfect probabilities"], ["smooth_ece", "smooth ECE"], ["brier", "Brier score"], ["nll", "negative log-likelihood"],
];

page.calibrationSection = (data) => {
  const { scores, bins, temperature } = page.finalOf(data)?.calibration ?? {};
  const split = page.splitOf(scores);
  if (!split) return null;
  return page.section("calibration", "Calibration", `The best checkpoint on ${split}: of predictions with probability 0.8, 80 in 100 should be right. Below the diagonal the model is too sure.`,
    page.element("div", { class: "beside" },
      bins[split].length ? reliabilityDiagram(bins[split], bins[`${split}_scaled`] ?? [], split) : null,
      page.element("div", { class: "measures" }, calibrationTable(scores, temperature), temperatureNote(temperature), bins[split].length ? binTable(bins[split], split) : null)));
};

function calibrationTable(scores, temperature) {
  const title = (split) => (split.endsWith("_scaled") ? `${split.replace("_scaled", "")}, scaled` : split);
  const columns = ["validation", "train", "train_scaled", "test", "test_scaled"].filter((split) => scores[split])
    .map((split) => ({ title: title(split), number: true, better: "min", value: ([name]) => scores[split][name], cell: ([name]) => page.score(scores[split][name]) }));
  return page.table([{ title: "", value: ([, text]) => text }, ...columns], CALIBRATION, { label: "calibration", filter: false });
}

function temperatureNote(temperature) {
  if (typeof temperature !== "number") return null;
  const meaning = temperature > 1.05 ? "the model is too sure" : temperature < 0.95 ? "the model is not sure enough" : "almost nothing to correct";
  return page.element("p", { class: "note" }, `Temperature ${page.number(temperature)}, fitted on validation: ${meaning}. Scaled: logits are divided by it. ECE has bins of equal mass; with few examples even perfect probabilities have one.`);
}

function binTable(bins, split) {
  return page.details(`The bins on ${split}`, page.table([
    { title: "mean probability", number: true, better: "min", value: (bin) => bin.confidence, cell: (bin) => page.score(bin.confidence) },
    { title: "right", number: true, value: (bin) => bin.accuracy, cell: (bin) => page.score(bin.accuracy) },
    { title: "examples", number: true, value: (bin) => bin.examples, cell: (bin) => page.count(bin.examples) },
  ], bins, { label: "bins of the reliability diagram", filter: false }));
}

function reliabilityDiagram(bins, scaled, split) {
  const size = 300, left = 46, top = 12, strip = 34, width = left + size + 14, height = top + size + 66 + strip;
  const all = [...bins, ...scaled];
  const low = Math.max(0, Math.floor(Math.min(...all.flatMap((bin) => [bin.confidence, bin.accuracy])) * 10) / 10);
  const x = (value) => left + ((value - low) / (1 - low || 1)) * size;
  const y = (value) => top + size - ((Math.max(value, low) - low) / (1 - low || 1)) * size;
  const ticks = Array.from({ length: 11 }, (_, index) => index / 10).filter((tick, index) => tick >= low && (low >= 0.3 || index % 2 === 0));
  const most = Math.max(...bins.map((bin) => bin.examples));
  const bottom = top + size + 50 + strip;
  const describe = (bin) => `probability ${page.score(bin.confidence)}: ${page.score(bin.accuracy)} of ${page.count(bin.examples)} right`;
  const line = (points, name) => page.svg("polyline", { points: points.map((bin) => `${x(bin.confidence)},${y(bin.accuracy)}`).join(" "), class: `reliability ${name}` });
  const point = (bin, name) => page.svg("circle", { cx: x(bin.confidence), cy: y(bin.accuracy), r: 4, class: `reliability ${name}` }, page.svg("title", {}, describe(bin)));
  const svg = page.svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "diagram", role: "img", "aria-label": `Reliability on ${split}. ${bins.map(describe).join("; ")}.` },
    ticks.map((tick) => [
      page.svg("line", { x1: left, x2: left + size, y1: y(tick), y2: y(tick), class: "axis" }), page.svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end", class: "tick" }, tick.toFixed(1)),
      page.svg("text", { x: x(tick), y: top + size + 16, "text-anchor": "middle", class: "tick" }, tick.toFixed(1)),
    ]).flat(),
    page.svg("line", { x1: x(low), y1: y(low), x2: x(1), y2: y(1), class: "diagonal" }),
    bins.map((bin) => {
      const [from, to] = wilson(bin.accuracy, bin.examples);
      return page.svg("line", { x1: x(bin.confidence), x2: x(bin.confidence), y1: y(from), y2: y(to), class: "whisker" });
    }),
    scaled.length ? [line(scaled, "scaled"), ...scaled.map((bin) => point(bin, "scaled"))] : [],
    line(bins, "measured"), bins.map((bin) => point(bin, "measured")),
    page.svg("text", { x: 12, y: top + size / 2, "text-anchor": "middle", class: "tick", transform: `rotate(-90 12 ${top + size / 2})` }, "share that is right"),
    page.svg("text", { x: left + size / 2, y: top + size + 34, "text-anchor": "middle", class: "tick" }, "probability"),
    bins.map((bin) => page.svg("rect", { x: x(bin.confidence) - 2, width: 4, y: bottom - (bin.examples / most) * strip, height: (bin.examples / most) * strip, class: "bin" }, page.svg("title", {}, describe(bin)))),
    page.svg("line", { x1: left, x2: left + size, y1: bottom, y2: bottom, class: "axis" }),
    page.svg("text", { x: left - 8, y: bottom - strip + 8, "text-anchor": "end", class: "tick" }, page.count(most)),
    page.svg("text", { x: left, y: bottom + 12, class: "tick" }, "examples of each bin"));
  return page.element("figure", { class: "reliability-diagram" }, page.element("figcaption", {}, page.element("span", { class: "chart-title" }, `Reliability on ${split}`),
    scaled.length ? page.element("span", {}, page.element("i", { class: "measured" }), "as predicted ", page.element("i", { class: "scaled" }), "scaled") : null, "bars: 95 % intervals"), svg);
}

// The 95 % interval of a share (Wilson 1927).
function wilson(share, count) {
  const z = 1.96, scale = 1 + (z * z) / count, center = (share + (z * z) / (2 * count)) / scale;
  const half = (z * Math.sqrt((share * (1 - share)) / count + (z * z) / (4 * count * count))) / scale;
  return [Math.max(0, center - half), Math.min(1, center + half)];
}

// ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────
page.errorsSection = (data) => {
  const errors = page.finalOf(data)?.errors;
  if (!errors?.split) return null;
  const list = (title, entries) => (entries.length ? [page.element("h3", {}, title), page.element("div", { class: "errors" }, errorTable(title, entries))] : []);
  return page.section("errors", "Errors", `The best checkpoint on ${errors.split}. Row numbers are those of the data.`,
    ...list("Wrong, and most sure", errors.worst), ...list("Least sure, right or wrong", errors.most_uncertain));
};

function errorTable(title, entries) {
  const named = (name) => (entry) => page.element("span", { class: "label" }, entry[name]);
  const predicted = (entry) => page.element("span", { class: entry.label === entry.predicted ? "label agrees" : "label differs" }, entry.predicted);
  return page.table([
    { title: "row", number: true, better: "min", value: (entry) => entry.row, cell: (entry) => String(entry.row ?? "–") },
    { title: "probability", number: true, value: (entry) => entry.probability, cell: (entry) => page.score(entry.probability) },
    { title: "true", value: (entry) => entry.label, cell: named("label") },
    { title: "predicted", value: (entry) => entry.predicted, cell: predicted },
    ...(entries.some((entry) => entry.text !== null) ? [{ title: "text", value: (entry) => entry.text, cell: (entry) => page.element("span", { class: "excerpt" }, entry.text ?? "–") }] : []),
  ], entries, { label: title, limit: 10, filter: false });
}

"use strict";
// How good the runs are: leaderboard with intervals, confusion.

page.leaderboardSections = (data) =>
  data.leaderboards.map((table, number) => leaderboard(data, table, number));

function leaderboard(data, table, number) {
  const rows = table.rows.map((row, index) => ({ ...row, rank: index + 1, name: data.runs[row.run].name }));
  const names = [...new Set(rows.flatMap((row) => Object.keys(row.scores)))].filter((name) => name !== table.metric && name !== "examples" && rows.some((row) => typeof row.scores[name] === "number"));
  const range = intervalRange(rows, table.metric);
  const columns = [
    { title: "#", number: true, better: "min", value: (row) => row.rank },
    ...(data.runs.length > 1 ? [{ title: "run", value: (row) => row.name }] : []),
    { title: "step", number: true, better: "min", value: (row) => row.step, cell: (row) => row.mean ?? page.count(row.step) },
    { title: table.metric, number: true, better: table.direction, value: (row) => row.scores[table.metric], cell: (row) => scoreCell(row, table.metric) },
    ...(range ? [{ title: "95 % interval", value: (row) => row.intervals?.[table.metric]?.[0], cell: (row) => intervalCell(row, table.metric, range) }] : []),
    ...(rows.some((row) => row.p_value !== undefined)
      ? [{ title: "adjusted p", number: true, better: "max", value: (row) => row.p_value, cell: (row) => page.pValue(row.p_value) }] : []),
    ...names.map((name) => ({
      title: name.replaceAll("_", " "), number: true, better: table.directions[name], value: (row) => row.scores[name], cell: (row) => page.score(row.scores[name]),
    })),
  ];
  const examples = rows[0]?.scores.examples;
  const better = table.direction === "min" ? "lower" : "higher";
  const note = `Every checkpoint on validation${examples ? ` (${page.count(examples)} examples)` : ""}; ${better} ${table.metric} is better.`
    + (rows.some((row) => row.not_distinguishable) ? " ≈ marks checkpoints that are not distinguishable from the best at this size." : "");
  const several = data.leaderboards.length > 1;
  return page.section(`leaderboard${number || ""}`, several ? `Leaderboard by ${table.metric}` : "Leaderboard", note,
    page.table(columns, rows, { label: "leaderboard", limit: 15, rowClass: (row) => (row.rank === 1 ? "best" : null) }), table.final ? finalScores(table.final) : null,
    table.final?.against_base?.rows ? againstBase(table.final.against_base) : null);
}

function scoreCell(row, metric) {
  const equal = row.not_distinguishable && row.rank > 1 ? page.element("span", { class: "equal", title: "not distinguishable from the best" }, "≈ ") : null;
  return [equal, page.score(row.scores[metric])];
}

function intervalRange(rows, metric) {
  const bounds = rows.flatMap((row) => row.intervals?.[metric] ?? []);
  return bounds.length ? [Math.min(...bounds), Math.max(...bounds)] : null;
}

function intervalCell(row, metric, [low, high]) {
  const interval = row.intervals?.[metric];
  if (!interval) return "–";
  const x = (value) => 4 + (high > low ? (value - low) / (high - low) : 0.5) * 112;
  const text = `${page.score(interval[0])} to ${page.score(interval[1])}`;
  return page.svg("svg", { viewBox: "0 0 120 14", class: "interval", role: "img", "aria-label": text },
    page.svg("title", {}, text),
    page.svg("line", { x1: x(interval[0]), x2: x(interval[1]), y1: 7, y2: 7 }),
    typeof row.scores[metric] === "number" ? page.svg("circle", { cx: x(row.scores[metric]), cy: 7, r: 3.2 }) : null);
}

// The winner on all splits it was scored on.
function finalScores(final) {
  const splits = Object.keys(final.scores);
  const names = [...new Set(splits.flatMap((split) => Object.keys(final.scores[split])))];
  const columns = [
    { title: "score", value: (name) => name.replaceAll("_", " ") },
    ...splits.flatMap((split) => [{ title: split, number: true, value: (name) => final.scores[split][name], cell: (name) => withInterval(final, split, name) }]),
  ];
  return page.details(`All scores of the best checkpoint${splits.includes("test") ? ", test included" : ""}`, page.table(columns, names, { label: "scores of the best checkpoint", filter: false }));
}

// The winner beside the model it was trained from.
function againstBase(comparison) {
  const interval = (row) => (row.interval ? ` [${page.score(row.interval[0])}, ${page.score(row.interval[1])}]` : "");
  const columns = [
    { title: "score", value: (row) => row.score },
    { title: "winner", number: true, value: (row) => row.winner, cell: (row) => `${page.score(row.winner)}${interval(row)}` },
    { title: "base", number: true, value: (row) => row.base, cell: (row) => page.score(row.base) },
    { title: "result", value: (row) => row.result },
    { title: "adjusted p", number: true, better: "min", value: (row) => smallerP(row), cell: (row) => page.pValue(smallerP(row)) },
    { title: "smallest difference", number: true, value: (row) => row.smallest_difference, cell: (row) => page.score(row.smallest_difference) },
  ];
  return page.element("div", {}, page.element("h3", {}, "Beside its base model"), comparison.note ? page.element("p", { class: "note" }, comparison.note) : null,
    page.table(columns, comparison.rows, { label: "the best checkpoint beside its base model", filter: false }));
}

// Of the two one-sided tests, worse and better.
function smallerP(row) {
  return row.p_worse === undefined || row.p_better === undefined ? undefined : Math.min(row.p_worse, row.p_better);
}

function withInterval(final, split, name) {
  const interval = final.intervals[split]?.[name];
  return `${page.score(final.scores[split][name])}${interval ? ` [${page.score(interval[0])}, ${page.score(interval[1])}]` : ""}`;
}

// ── confusion ───────────────────────────────────────────────────────────────────────────────────────────────────────
const MOST_CLASSES = 40;

page.finalOf = (data) => data.leaderboards[0]?.final;

// What was chosen on validation shows how good it is on test.
page.splitOf = (splits) => ["test", "validation"].find((split) => splits?.[split]);

page.confusionSection = (data) => {
  const final = page.finalOf(data);
  const split = page.splitOf(final?.confusion);
  if (!split || final.confusion[split].length > MOST_CLASSES) return null;
  const matrix = final.confusion[split];
  const labels = matrix.map((_, index) => final.labels[index] ?? String(index));
  return page.section("confusion", "Confusion", `The best checkpoint on ${split}: rows are true classes, columns predictions, shades the share of a row.`,
    page.element("div", { class: "beside" }, confusionTable(matrix, labels, split), mistakes(matrix, labels)));
};

function confusionTable(matrix, labels, split) {
  const head = page.element("tr", {}, page.element("th", { class: "corner" }, "true ↓ predicted →"), labels.map((label) => page.element("th", { scope: "col" }, label)), page.element("th", { scope: "col" }, "recall"));
  const rows = matrix.map((counts, truth) => {
    const total = counts.reduce((sum, count) => sum + count, 0);
    return page.element("tr", {}, page.element("th", { scope: "row" }, labels[truth]), counts.map((count, predicted) => {
      const share = total ? count / total : 0;
      return page.element("td", {
        class: predicted === truth ? "right" : "wrong", style: { "--share": `${Math.round(share * 100)}%` },
        title: `${labels[truth]} predicted as ${labels[predicted]}: ${page.count(count)}, ${page.percent(share)}`,
      }, page.count(count));
    }), page.element("td", { class: "recall" }, page.percent(total ? counts[truth] / total : null)));
  });
  return page.element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Confusion on ${split}` },
    page.element("table", { class: "confusion" }, page.element("thead", {}, head), page.element("tbody", {}, rows)));
}

function mistakes(matrix, labels) {
  const pairs = matrix.flatMap((counts, truth) => counts.map((count, predicted) => ({ truth, predicted, count }))).filter((pair) => pair.truth !== pair.predicted && pair.count > 0);
  pairs.sort((a, b) => b.count - a.count);
  if (pairs.length < 3) return null;
  return page.element("div", {}, page.element("h3", {}, "Most frequent mistakes"), page.table([
    { title: "true", value: (pair) => labels[pair.truth] }, { title: "predicted", value: (pair) => labels[pair.predicted] },
    { title: "count", number: true, value: (pair) => pair.count, cell: (pair) => page.count(pair.count) },
  ], pairs.slice(0, 10), { label: "most frequent mistakes", filter: false }));
}

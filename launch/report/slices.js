"use strict";
// The best checkpoint on slices of a split: rows with one value of a column, or of similar length.

page.slicesSection = (data) => {
  const final = page.finalOf(data);
  const split = page.splitOf(final?.slices);
  if (!split) return null;
  const { metric, direction } = data.leaderboards[0];
  const rows = final.slices[split].map((entry) => ({ ...entry, scores: { [metric]: entry.score }, intervals: entry.interval ? { [metric]: entry.interval } : {} }));
  const range = intervalRange(rows, metric);
  const worse = rows.filter((row) => row.worse).length;
  const finding = worse ? `▼ marks ${page.count(worse)} of ${page.count(rows.length)} slices that are` : `none of ${page.count(rows.length)} slices is`;
  return page.section("slices", "Slices", `The best checkpoint on ${split}; ${finding} worse than the rest of the split, at 5 % after Holm's correction for all slices. Without p-value: too few examples for a claim.`, page.table([
    { title: "slice", value: (row) => `${row.by} ${row.slice}`, cell: (row) => [page.element("span", { class: "by" }, `${row.by} `), page.element("span", { class: "label" }, row.slice)] },
    { title: metric, number: true, better: direction === "min" ? "max" : "min", value: (row) => row.score, cell: (row) => sliceScore(row) },
    { title: "examples", number: true, value: (row) => row.examples, cell: (row) => page.count(row.examples) },
    ...(range ? [{ title: "95 % interval", value: (row) => row.interval?.[0], cell: (row) => intervalCell(row, metric, range) }] : []),
    { title: "adjusted p", number: true, better: "min", value: (row) => row.p_value, cell: (row) => page.pValue(row.p_value) },
  ], rows, { label: `scores of slices on ${split}`, limit: 20 }));
};

function sliceScore(row) {
  return row.worse ? [page.element("span", { class: "worse", title: "worse than the rest" }, "▼ "), page.score(row.score)] : page.score(row.score);
}

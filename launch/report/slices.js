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
  const finding = worse ? `${page.count(worse)} of ${page.count(rows.length)} slices are marked` : "no slice is";
  return page.section("slices", "Slices", `The best checkpoint on ${split}; ${finding}: worse than the rest of the split at 5 %, after Holm's correction for ${page.count(rows.length)} slices. Too few examples (–) allow no claim.`, page.table([
    { title: "by", value: (row) => row.by, cell: (row) => page.element("span", { class: "label" }, row.by) },
    { title: "slice", value: (row) => row.slice, cell: (row) => page.element("span", { class: "label" }, row.slice) },
    { title: "examples", number: true, value: (row) => row.examples, cell: (row) => page.count(row.examples) },
    { title: metric, number: true, better: direction === "min" ? "max" : "min", value: (row) => row.score, cell: (row) => page.score(row.score) },
    ...(range ? [{ title: "95 % interval", value: (row) => row.interval?.[0], cell: (row) => intervalCell(row, metric, range) }] : []),
    { title: "adjusted p", number: true, better: "min", value: (row) => row.p_value, cell: (row) => page.pValue(row.p_value) },
    ...(worse ? [{ title: "worse", value: (row) => (row.worse ? "worse" : ""), cell: (row) => (row.worse ? page.element("span", { class: "worse" }, "worse") : "") }] : []),
  ], rows, { label: `scores of slices on ${split}`, limit: 20 }));
};

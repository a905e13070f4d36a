"use strict";
// Curves with uPlot: zoom by dragging or by keys, one cursor over all charts, runs chosen by a legend.

const TITLES = {
  loss: "loss", lr: "learning rate", grad_norm: "gradient norm", examples_per_s: "examples per second", tokens_per_s: "tokens per second",
  memory_gb: "memory, GB", padding_share: "padding share",
};
const LOG_SCALE = new Set(["train/loss", "train/grad_norm"]);
const FEW_RUNS = 8; // up to here training and validation share a chart, and each run has a colour of its own
const FIRST = ["train/loss", "validation/loss"];

page.charts = {}; // title -> uPlot

page.decodeCurves = (curves) => curves.map((curve) => ({
  ...curve,
  key: `${curve.kind}/${curve.name}`,
  steps: curve.steps.reduce((steps, delta) => { steps.push((steps.at(-1) ?? 0) + delta); return steps; }, []),
  // false: no value at this step; null: a value that is not a number.
  values: Object.fromEntries(Object.entries(curve.values).map(([run, values]) => [run, values.map((value) => (value === false ? undefined : value))])),
}));

page.curvesSection = (data) => {
  const curves = page.decodeCurves(data.curves);
  if (!curves.length) return null;
  const few = data.runs.length <= FEW_RUNS;
  const groups = chartGroups(curves, data, few);
  const range = stepRange(curves);
  const state = { hidden: new Set(), colorBy: page.colorings(data)[0], range, zoom: range };
  const charts = [];

  const grid = page.element("div", { class: "charts" });
  const minor = page.element("div", { class: "charts" });
  const details = page.details("More validation scores", minor);
  for (const group of groups) {
    const chart = makeChart(group, data, state, few);
    charts.push(chart);
    (group.minor ? minor : grid).append(chart.figure);
  }

  const redraw = () => charts.forEach((chart) => chart.draw());
  new ResizeObserver(() => charts.forEach((chart) => chart.resize())).observe(grid);

  const thinned = Math.max(...curves.map((curve) => curve.bucket));
  const note = "Drag to zoom, double-click to reset; with the keyboard: arrows move the cursor, + and − zoom, 0 resets."
    + (thinned > 1 ? ` Of every ${page.count(thinned)} neighbouring steps the lowest and the highest value are drawn.` : "");
  const section = page.section("curves", "Curves", note,
    legend(data, state, redraw, few), grid, groups.some((group) => group.minor) ? details : null);
  // Charts are drawn when they come near the screen: those of 100 runs take a while.
  const observer = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      observer.unobserve(target);
      charts.find((chart) => chart.figure === target).start();
    }
  }, { rootMargin: "100% 0%" });
  page.whenShown(() => charts.forEach((chart) => observer.observe(chart.figure)));
  page.drawCharts = () => charts.forEach((chart) => chart.start());
  return section;
};

// Charts: {title, log, minor, curves}. Of few runs, training and validation of the same score share a chart.
function chartGroups(curves, data, few) {
  const metric = data.leaderboards[0]?.metric;
  const groups = new Map();
  for (const curve of curves) {
    const shared = few && curves.some((other) => other.name === curve.name && other.kind !== curve.kind);
    const title = shared || curve.kind === "train" ? TITLES[curve.name] ?? curve.name : `validation ${TITLES[curve.name] ?? curve.name}`;
    if (!groups.has(title)) groups.set(title, { title, curves: [], log: false });
    groups.get(title).curves.push(curve);
  }
  const importance = (group) => {
    const [curve] = group.curves;
    if (curve.key === FIRST[0]) return 0;
    if (curve.key === FIRST[1]) return 1;
    if (curve.name === metric) return 2;
    return curve.kind === "train" ? 3 : 4;
  };
  const sorted = [...groups.values()].sort((a, b) => importance(a) - importance(b));
  const others = sorted.filter((group) => importance(group) === 4);
  // Without a leaderboard nothing says which validation score matters.
  if (others.length > (metric ? 0 : 3)) others.slice(metric ? 0 : 1).forEach((group) => { group.minor = true; });
  for (const group of sorted) group.logarithmic = group.curves.every((curve) => LOG_SCALE.has(curve.key)) && wide(group.curves);
  return sorted;
}

// Whether the values span so much that only a logarithmic scale shows them.
function wide(curves) {
  const values = curves.flatMap((curve) => Object.values(curve.values).flat()).filter((value) => typeof value === "number");
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  return low > 0 && values.reduce((a, b) => Math.max(a, b), 0) / low > 50;
}

// All charts have the same steps, so that what stands above another happened at the same time.
function stepRange(curves) {
  const first = Math.min(...curves.map((curve) => curve.steps[0]));
  const last = Math.max(...curves.map((curve) => curve.steps.at(-1)));
  return [first, Math.max(last, first + 1)];
}

function makeChart(group, data, state, few) {
  const steps = [...new Set(group.curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, index) => [step, index]));
  const series = [];
  for (const curve of group.curves)
    for (const [run, values] of Object.entries(curve.values)) {
      const aligned = new Array(steps.length).fill(undefined);
      curve.steps.forEach((step, index) => { aligned[place.get(step)] = values[index]; });
      series.push({ run: Number(run), kind: curve.kind, values: aligned });
    }
  const mixed = new Set(group.curves.map((curve) => curve.kind)).size > 1;
  const readout = page.element("output", { class: "readout", "aria-live": "off" });
  const holder = page.element("div", {
    class: "plot", tabindex: "0", role: "img", "aria-label": describe(group, series, data), keydown: (event) => keys(event),
  });
  const scale = page.element("button", {
    type: "button", class: "quiet", "aria-pressed": String(group.logarithmic), click: () => {
      group.logarithmic = !group.logarithmic;
      scale.setAttribute("aria-pressed", String(group.logarithmic));
      draw();
    },
  }, "log");
  const positive = series.every((entry) => entry.values.every((value) => value === undefined || value === null || value > 0));
  const figure = page.element("figure", {},
    page.element("figcaption", {}, page.element("span", { class: "chart-title" }, group.title),
      mixed ? page.element("span", { class: "lines" }, page.element("i", { class: "solid" }), "training ", page.element("i", { class: "dashed" }), "validation") : null,
      readout, positive ? scale : null),
    holder);
  let plot = null;
  let started = false;

  function options() {
    const axis = { stroke: page.ink("--soft"), grid: { stroke: page.ink("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    return {
      width: Math.max(holder.clientWidth, 200), height: 220,
      legend: { show: false },
      cursor: {
        sync: { key: "steps", scales: ["x", null] }, focus: { prox: 24 }, drag: { x: true, y: false, setScale: false }, points: { size: 6 },
        bind: { dblclick: () => () => zoomTo(...state.range) },
      },
      focus: { alpha: few ? 0.35 : 0.15 },
      scales: { x: { time: false, range: (_, min, max) => (min === null ? state.range : [min, max]) }, y: { distr: group.logarithmic && positive ? 3 : 1 } },
      axes: [{ ...axis, size: 28, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? short(tick) : "")) },
        { ...axis, size: 54, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : page.number(tick))) }],
      series: [{}, ...series.map((entry) => ({
        label: name(entry), show: !state.hidden.has(entry.run), stroke: state.colorBy.color(entry.run, few),
        width: few ? 1.6 : 1, dash: mixed && entry.kind === "validation" ? [5, 4] : undefined,
        points: { show: entry.kind === "validation" && steps.length < 60, size: 5 }, spanGaps: false,
      }))],
      hooks: { setCursor: [read], setSeries: [read], setSelect: [select] },
    };
  }

  const name = (entry) => data.runs[entry.run].name;

  function read(chart) {
    const index = chart.cursor.idx;
    if (index === null || index === undefined) { readout.textContent = ""; return; }
    const focused = series.findIndex((entry, number) => chart.series[number + 1]._focus && !state.hidden.has(entry.run));
    const shown = focused >= 0 ? [series[focused]] : series.length <= 2 ? series : [];
    const values = shown.map((entry) => [entry, nearest(entry.values, index)]).filter(([, value]) => value !== undefined);
    const text = values.map(([entry, value]) => `${data.runs.length > 1 ? `${name(entry)} ` : mixed ? `${entry.kind === "train" ? "training" : entry.kind} ` : ""}${page.number(value)}`).join(", ");
    readout.textContent = `step ${page.count(steps[index])}${text ? `: ${text}` : ""}`;
  }

  // The selection appears in all charts; the one under the pointer decides.
  function select(chart) {
    const { left, width } = chart.select;
    if (width < 3 || !holder.matches(":hover")) return;
    const [min, max] = [left, left + width].map((position) => chart.posToVal(position, "x"));
    zoomTo(min, max);
  }

  function draw() {
    if (!started) return;
    plot?.destroy();
    plot = new uPlot(options(), [steps, ...series.map((entry) => entry.values)], holder);
    plot.setScale("x", { min: state.zoom[0], max: state.zoom[1] });
    page.charts[group.title] = plot;
  }

  // All charts show the same steps.
  function zoomTo(min, max) {
    state.zoom = [min, max];
    page.zoomed = min > state.range[0] || max < state.range[1];
    for (const each of Object.values(page.charts)) {
      each.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
      each.setScale("x", { min, max });
    }
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !plot) return;
    const { min, max } = plot.scales.x;
    const index = plot.cursor.idx ?? 0;
    const center = steps[index];
    const move = (to) => plot.setCursor({ left: plot.valToPos(steps[Math.min(steps.length - 1, Math.max(0, to))], "x"), top: plot.over.clientHeight / 2 });
    const zoom = (factor) => zoomTo(Math.max(state.range[0], center - (center - min) * factor), Math.min(state.range[1], center + (max - center) * factor));
    const actions = {
      ArrowLeft: () => move(index - 1), ArrowRight: () => move(index + 1), Home: () => move(0), End: () => move(steps.length - 1),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => zoomTo(...state.range),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  return {
    figure, draw,
    start() { if (!started) { started = true; draw(); } },
    resize() { if (plot && holder.clientWidth > 0 && plot.width !== holder.clientWidth) plot.setSize({ width: holder.clientWidth, height: 220 }); },
  };
}

// Validation has values at few steps only: the last one before the cursor.
function nearest(values, index) {
  for (let place = index; place >= 0; place -= 1) if (values[place] !== undefined) return values[place];
  return undefined;
}

function short(step) {
  return step >= 1e6 ? `${step / 1e6}M` : step >= 1e4 ? `${step / 1e3}k` : page.count(step);
}

// What a screen reader says of a chart.
function describe(group, series, data) {
  const ends = series.slice(0, 3).map((entry) => {
    const values = entry.values.filter((value) => typeof value === "number");
    return `${data.runs[entry.run].name}, ${entry.kind}: from ${page.number(values[0])} to ${page.number(values.at(-1))}`;
  });
  return `${group.title} by step. ${ends.join("; ")}${series.length > 3 ? `; and ${series.length - 3} more curves` : ""}. Arrow keys move the cursor, plus and minus zoom, 0 resets.`;
}

// ── which colour a run has ──────────────────────────────────────────────────────────────────────────────────────────
// {name, color(run, few)}: few runs have a colour each, many are shaded by their score or by a setting.
page.colorings = (data) => {
  const scores = page.bestScores(data);
  const byScore = scores && { name: data.leaderboards[0]?.metric ?? "best score", values: scores };
  const bySetting = page.numericSettings(data).map((key) => ({ name: key, values: data.runs.map((run) => run.point[key]) }));
  const shaded = [byScore, ...bySetting].filter(Boolean).map(({ name, values }) => ({ name, color: (run) => page.shade(page.share(values, run)) }));
  const plain = { name: "run", color: (run) => page.color(run) };
  return data.runs.length <= FEW_RUNS || !shaded.length ? [plain, ...shaded] : [...shaded, plain];
};

// The place of a run among all, from 0 to 1: by rank, so that a single outlier does not make all others equal.
page.share = (values, run) => {
  const sorted = [...new Set(values.filter((value) => typeof value === "number"))].sort((a, b) => a - b);
  return typeof values[run] === "number" && sorted.length > 1 ? sorted.indexOf(values[run]) / (sorted.length - 1) : 0;
};

page.bestScores = (data) => {
  const table = data.leaderboards[0];
  if (!table) return data.runs.some((run) => run.best_score !== null) ? data.runs.map((run) => run.best_score) : null;
  const scores = new Array(data.runs.length).fill(null);
  for (const row of table.rows) scores[row.run] ??= row.scores[table.metric] ?? null; // sorted: the first is a run's best
  return scores;
};

page.numericSettings = (data) =>
  data.varying.filter((key) => new Set(data.runs.map((run) => run.point[key]).filter((value) => typeof value === "number")).size > 1);

function legend(data, state, redraw, few) {
  if (data.runs.length === 1) return null;
  const chips = page.element("div", { class: "chips", role: "group", "aria-label": "Runs in the charts" });
  const paint = () => chips.replaceChildren(...data.runs.map((run, number) => {
    const chip = page.element("button", {
      type: "button", class: "chip", "aria-pressed": String(!state.hidden.has(number)), click: () => {
        if (state.hidden.has(number)) state.hidden.delete(number); else state.hidden.add(number);
        chip.setAttribute("aria-pressed", String(!state.hidden.has(number)));
        redraw();
      },
    }, page.element("i", { style: { background: state.colorBy.color(number, few) } }), run.name);
    return chip;
  }));
  const colorings = page.colorings(data);
  const select = page.element("select", { "aria-label": "Colour of the runs", change: (event) => {
    state.colorBy = colorings[event.target.selectedIndex];
    paint();
    redraw();
  } }, colorings.map((coloring) => page.element("option", {}, coloring.name)));
  const set = (hidden) => page.element("button", { type: "button", class: "quiet", click: () => {
    state.hidden = new Set(hidden ? data.runs.keys() : []);
    paint();
    redraw();
  } }, hidden ? "none" : "all");
  paint();
  const tools = page.element("div", { class: "tools" }, page.element("label", {}, "colour by ", select), set(false), set(true));
  return page.element("div", { class: "legend" }, tools, few ? chips : page.details(`${data.runs.length} runs`, chips));
}

"use strict";
// The runs themselves: summary, table, time line and cost, data, recipe, environment.

const PHASES = { starting: "start-up", training: "training", validation: "validation", saving: "saving", repeated: "repeated after a restart", ending: "ending" };

// ── summary ─────────────────────────────────────────────────────────────────────────────────────────────────────────
page.summarySection = (data) => {
  const { trained, result, significance, next } = data.summary;
  const block = (title, sentences) => (sentences.length
    ? [page.element("h3", {}, title), page.element("ul", { class: "plain" }, sentences.map((sentence) => page.element("li", {}, marked(sentence))))] : []);
  return page.element("section", { id: "summary", "aria-label": "Summary" },
    page.element("p", { class: "lead" }, trained),
    page.element("div", { class: "tiles" }, tiles(data)),
    page.element("div", { class: "findings" },
      [[...block("Result", result), ...block("Significance", significance)], block("Next", next)]
        .filter((column) => column.length).map((column) => page.element("div", {}, column))));
};

page.diagnosisSection = (data) => {
  if (!data.diagnosis?.length) return null;
  return page.section("diagnosis", "Diagnosis", "What went wrong by the rules of sft-dist diagnose, the surest first, and the next recipe.", page.table([
    { title: "cause", value: (entry) => entry.meaning },
    ...(data.runs.length > 1 ? [{ title: "run", value: (entry) => (entry.run === null ? "all" : data.runs[entry.run].name) }] : []),
    { title: "confidence", number: true, value: (entry) => entry.confidence, cell: (entry) => page.percent(entry.confidence) },
    { title: "evidence", value: (entry) => entry.message },
    { title: "next recipe", value: (entry) => entry.changes.join("\n"), cell: (entry) => page.element("div", {}, entry.changes.map((line) => page.element("div", {}, page.element("code", {}, line))), entry.advice) },
  ], data.diagnosis, { label: "Diagnosis", limit: 10, filter: false }));
};

// Texts in backticks are commands.
function marked(sentence) {
  return sentence.split("`").map((text, index) => (index % 2 ? page.element("code", {}, text) : text));
}

function tiles(data) {
  const table = data.leaderboards[0];
  const best = table?.rows[0];
  const final = table?.final;
  const entries = [];
  const splits = table ? ["test", "validation"].filter((split) => typeof final?.scores[split]?.[table.metric] === "number") : [];
  for (const split of splits)
    entries.push([page.score(final.scores[split][table.metric]), `${table.metric} on ${split}`, interval(final.intervals[split]?.[table.metric] ?? (split === "validation" ? best.intervals?.[table.metric] : null))]);
  if (!splits.length && best && typeof best.scores[table.metric] === "number")
    entries.push([page.score(best.scores[table.metric]), `${table.metric} on validation`, interval(best.intervals?.[table.metric])]);
  if (data.runs.length === 1) {
    const [run] = data.runs;
    entries.push([page.count(run.step), run.total_steps ? `of ${page.count(run.total_steps)} steps` : "steps", run.state]);
    if (!table && typeof run.loss === "number") entries.push([page.number(run.loss), "training loss", ""]);
  } else {
    const finished = data.runs.filter((run) => run.state === "finished").length;
    entries.push([page.count(data.runs.length), "runs", finished === data.runs.length ? "all finished" : `${page.count(finished)} finished`]);
  }
  if (data.cost.total) {
    entries.push([page.duration(data.cost.total), data.devices.includes("gpu") ? "of GPU time" : "of process time", ""]);
    entries.push([page.percent(data.cost.goodput), "goodput", "trained the final weights"]);
  }
  return entries.map(([value, name, note]) => page.element("div", { class: "tile" },
    page.element("span", { class: "value" }, value), page.element("span", { class: "name" }, name), note ? page.element("span", { class: "small" }, note) : null));
}

function interval(bounds) {
  return bounds ? `95 %: ${page.score(bounds[0])} to ${page.score(bounds[1])}` : "";
}

// ── table of runs ───────────────────────────────────────────────────────────────────────────────────────────────────
page.runsSection = (data) => {
  if (data.runs.length < 2) return null;
  const scores = page.bestScores(data);
  const table = data.leaderboards[0];
  const rows = data.runs.map((run, number) => ({ ...run, number, score: scores?.[number] ?? null }));
  const sign = table?.direction === "min" ? 1 : -1;
  rows.sort((a, b) => (a.score === null) - (b.score === null) || sign * (a.score - b.score));
  const keys = data.varying.slice(0, 6);
  const columns = [
    { title: "run", value: (run) => run.id, cell: (run) => page.element("code", {}, run.id) },
    ...(new Set(rows.map((run) => run.recipe)).size > 1 ? [{ title: "recipe", value: (run) => run.recipe }] : []),
    ...keys.map((key) => ({ title: key, number: rows.every((run) => typeof run.point[key] === "number"), better: "min", value: (run) => run.point[key], cell: (run) => page.setting(run.point[key]) })),
    ...(scores ? [{ title: table?.metric ?? "best score", number: true, better: table?.direction, value: (run) => run.score, cell: (run) => page.score(run.score) }] : []),
    { title: "loss", number: true, better: "min", value: (run) => run.loss, cell: (run) => page.number(run.loss) },
    { title: "state", value: (run) => run.state, cell: (run) => state(run.state) },
    { title: "step", number: true, value: (run) => run.step, cell: (run) => `${page.count(run.step)} / ${page.count(run.total_steps)}` },
    { title: "time", number: true, value: (run) => run.cost.total, cell: (run) => page.duration(run.cost.total || null) },
  ];
  return page.section("runs", "Runs", "", page.table(columns, rows, { label: "runs", limit: 15 }));
};

function state(name) {
  return page.element("span", { class: `state ${name}` }, name);
}

// ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────
const MOST_LANES = 40;

page.timeSection = (data) => {
  const lanes = data.runs.flatMap((run) => run.attempts.filter((attempt) => attempt.start).map((attempt) => ({ run, attempt })));
  if (!lanes.length) return null;
  const several = data.runs.length > 1;
  return page.section("time", "Time and cost", "Goodput is the share of all process time that trained the final weights: not starting, validating, saving, nor steps repeated after a restart.",
    timeline(lanes.slice(0, several ? undefined : MOST_LANES), several), phaseLegend(data), costTable(data), attemptsTable(lanes, several));
};

// One lane an attempt of a single run, or one lane a run; pauses of more than a tenth of the whole are cut out.
function timeline(lanes, several) {
  lanes = [...lanes].sort((a, b) => a.attempt.start - b.attempt.start);
  const keys = several ? [...new Set(lanes.map((lane) => lane.run))] : lanes.map((lane) => lane.attempt);
  const laneOf = (lane) => keys.indexOf(several ? lane.run : lane.attempt);
  const clock = compressed(lanes.map((lane) => [lane.attempt.start, lane.attempt.end]));
  const rowHeight = keys.length > 30 ? 7 : keys.length > 12 ? 12 : 22;
  const left = keys.length > 30 ? 8 : several ? 190 : 80, width = 960, bottom = 22, height = keys.length * rowHeight + bottom;
  const x = (time) => left + clock.place(time) * (width - left - 12);
  const bars = lanes.map((lane) => {
    const up = laneOf(lane) * rowHeight + 1;
    const { attempt } = lane;
    const failed = ["failed", "killed"].includes(attempt.state);
    return page.svg("g", {},
      attempt.phases.map(([kind, from, to]) => page.svg("rect", {
        class: `phase ${kind}`, x: x(attempt.start + from), width: Math.max(x(attempt.start + to) - x(attempt.start + from), 0.6), y: up, height: rowHeight - 3,
      }, page.svg("title", {}, `${several ? lane.run.name : `attempt ${attempt.number}`}, ${PHASES[kind] ?? kind}: ${page.duration(to - from)}`))),
      failed ? page.svg("path", { class: "failed", d: cross(x(attempt.end) + 5, up + (rowHeight - 3) / 2, Math.min(4, rowHeight / 3)) }, page.svg("title", {}, `${attempt.state}: ${attempt.cause}`)) : null);
  });
  const names = keys.length > 30 ? [] : keys.map((key, lane) => page.svg("text", { x: left - 8, y: lane * rowHeight + rowHeight / 2 + 3, "text-anchor": "end", class: "tick" },
    several ? clipped(key.name, 28) : `attempt ${key.number}`));
  const pauses = clock.cuts.map(([time, duration]) => page.svg("g", {},
    page.svg("line", { class: "pause", x1: x(time), x2: x(time), y1: 0, y2: height - bottom }), page.svg("title", {}, `pause of ${page.duration(duration)}`)));
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => page.svg("text", {
    x: left + share * (width - left - 12), y: height - 5, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle", class: "tick",
  }, page.duration(share * clock.total)));
  return page.element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Time line" },
    page.svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "timeline", role: "img", "aria-label": `Time line of ${lanes.length} attempts, ${page.duration(clock.total)} without pauses; the table below has the same numbers.` }, pauses, bars, names, ticks));
}

function cross(x, y, size) {
  return `M${x - size},${y - size}L${x + size},${y + size}M${x - size},${y + size}L${x + size},${y - size}`;
}

// Time from 0 to 1 over the moments at which something ran; what lies between is a thin cut.
function compressed(intervals) {
  const sorted = [...intervals].sort((a, b) => a[0] - b[0]);
  const busy = [];
  for (const [start, end] of sorted) {
    if (busy.length && start <= busy.at(-1)[1]) busy.at(-1)[1] = Math.max(busy.at(-1)[1], end);
    else busy.push([start, end]);
  }
  const active = busy.reduce((sum, [start, end]) => sum + end - start, 0);
  const cut = (gap) => (gap > active / 10 ? active / 50 : gap);
  const cuts = [];
  let offset = 0;
  const parts = busy.map(([start, end], index) => {
    if (index) {
      const gap = start - busy[index - 1][1];
      if (gap > active / 10) cuts.push([busy[index - 1][1], gap]);
      offset += cut(gap);
    }
    const part = { start, end, offset };
    offset += end - start;
    return part;
  });
  const total = offset || 1;
  const place = (time) => {
    const part = parts.findLast((each) => each.start <= time) ?? parts[0];
    return Math.min(1, (part.offset + Math.min(time, part.end) - part.start) / total);
  };
  return { total, cuts, place };
}

function phaseLegend(data) {
  const used = Object.keys(PHASES).filter((kind) => data.cost.seconds[kind] > 0);
  return page.element("p", { class: "phases" }, used.map((kind) => page.element("span", {}, page.element("i", { class: `phase ${kind}` }), PHASES[kind])));
}

function costTable(data) {
  const { seconds, total, goodput } = data.cost;
  const rows = Object.entries(seconds).sort((a, b) => b[1] - a[1]);
  const device = data.devices.length === 1 && data.devices[0] === "gpu" ? "GPU" : "process";
  return page.facts([
    [`${device} hours`, (total / 3600).toFixed(total < 360 ? 4 : 2)], ["goodput", page.percent(goodput)],
    ...rows.map(([kind, value]) => [PHASES[kind] ?? kind, `${page.duration(value)} (${page.percent(value / total)})`]),
  ]);
}

function attemptsTable(lanes, several) {
  const columns = [
    ...(several ? [{ title: "run", value: (lane) => lane.run.name }] : []),
    { title: "attempt", number: true, better: "min", value: (lane) => lane.attempt.number },
    { title: "began (UTC)", value: (lane) => page.date(lane.attempt.start) },
    { title: "took", number: true, value: (lane) => lane.attempt.end - lane.attempt.start, cell: (lane) => page.duration(lane.attempt.end - lane.attempt.start) },
    { title: "host", value: (lane) => lane.attempt.host },
    { title: "processes", number: true, value: (lane) => lane.attempt.processes },
    { title: "steps", value: (lane) => (lane.attempt.last_step === null ? null : `${page.count(lane.attempt.first_step ?? 0)} to ${page.count(lane.attempt.last_step)}`) },
    { title: "end", value: (lane) => `${lane.attempt.state} ${lane.attempt.cause}`, cell: (lane) => [state(lane.attempt.state), lane.attempt.state === "finished" || !lane.attempt.cause ? "" : `: ${lane.attempt.cause}`] },
  ];
  const table = page.table(columns, lanes, { label: "attempts", limit: 15 });
  return lanes.length > 4 ? page.details(`${page.count(lanes.length)} attempts`, table) : table;
}

// ── data, recipe, environment ───────────────────────────────────────────────────────────────────────────────────────
page.dataSection = (data) => {
  if (!data.data.length) return null;
  const cards = data.data.slice(0, 6).map(({ card, runs }) => page.element("div", { class: "card" },
    data.data.length > 1 ? page.element("h3", {}, whose(runs, data)) : null, splitBar(card.splits),
    page.facts([
      ...Object.entries(card.settings).map(([key, value]) => [key, page.setting(value)]),
      ...Object.entries(card.dropped).map(([reason, count]) => [`dropped: ${reason}`, `${page.count(count)} rows`]),
      ...(card.check ? [["sft-dist check", card.check]] : []),
      ...(card.labels.length ? [["classes", `${page.count(card.labels.length)}: ${card.labels.slice(0, 20).join(", ")}${card.labels.length > 20 ? " …" : ""}`]] : []),
      ...Object.entries(card.splits).filter(([, split]) => split.contents).map(([name, split]) => [`digest of ${name}`, split.contents.slice(0, 16)]),
    ])));
  return page.section("data", "Data", "", ...cards);
};

function splitBar(splits) {
  const entries = Object.entries(splits).filter(([, split]) => typeof split.rows === "number");
  const total = entries.reduce((sum, [, split]) => sum + split.rows, 0);
  if (!total) return null;
  return page.element("div", { class: "split-bar", role: "img", "aria-label": entries.map(([name, split]) => `${name}: ${split.rows} rows`).join(", ") },
    entries.map(([name, split], index) => page.element("div", { class: `split split-${index % 3}`, style: { "flex-grow": String(Math.max(split.rows / total, 0.02)) } },
      page.element("span", {}, `${name} `), page.element("b", {}, page.count(split.rows)))));
}

function whose(runs, data) {
  return runs.length === data.runs.length ? "all runs" : runs.length > 3 ? `${page.count(runs.length)} runs` : runs.map((run) => data.runs[run].name).join("; ");
}

page.recipeSection = (data) => {
  const unset = (value) => value === null || value === false || value === "none" || (typeof value === "object" && !Object.keys(value).length);
  const groups = new Map();
  for (const [key, value] of Object.entries(data.settings)) {
    const [section, ...rest] = key.split(".");
    if (!groups.has(section)) groups.set(section, []);
    groups.get(section).push([rest.join(".") || section, value]);
  }
  const list = (wanted) => page.element("div", { class: "recipe" }, [...groups].map(([section, pairs]) => {
    const chosen = pairs.filter(([, value]) => unset(value) !== wanted);
    return chosen.length ? page.element("div", {}, page.element("h3", {}, section), page.facts(chosen.map(([key, value]) => [key, page.setting(value)]))) : null;
  }));
  const varying = data.varying.length ? page.element("p", {}, "These runs differ in ", data.varying.flatMap((key, index) => [index ? ", " : "", page.element("code", {}, key)]), "; all else is the same.") : null;
  return page.section("recipe", "Recipe", "", varying, ...data.bases.slice(0, 6).map((entry) => baseDifference(entry, data)), list(true), page.details("Settings that are off or unset", list(false)));
};

// What a recipe changes of its parent, as both are written.
function baseDifference({ card, runs }, data) {
  const written = (tag, value) => (value === null ? null : page.element(tag, {}, page.setting(value)));
  return page.element("div", { class: "card" }, page.element("h3", {}, "Differences from ", page.element("code", {}, card.name), data.bases.length > 1 ? `, of ${whose(runs, data)}` : ""),
    page.element("dl", { class: "facts differences" }, card.changes.flatMap(({ key, parent, own }) => [page.element("dt", {}, key), page.element("dd", {}, written("del", parent), written("ins", own))])));
}

page.environmentSection = (data) => {
  if (!data.environments.length) return null;
  const cards = data.environments.slice(0, 6).map(({ card, runs }) => page.element("div", { class: "card" },
    data.environments.length > 1 ? page.element("h3", {}, whose(runs, data)) : null, page.facts(Object.entries(card).map(([key, value]) => [key, page.setting(value)]))));
  const changed = data.runs.filter((run) => run.changed.length);
  const warning = changed.length ? page.element("p", { class: "warning" }, `Edited since the run was made: ${changed.slice(0, 5).map((run) => `${run.name} (${run.changed.join(", ")})`).join("; ")}`) : null;
  const folders = page.element("p", { class: "note" }, "Folder: ", page.element("code", {}, data.runs.length === 1 ? data.runs[0].folder : data.runs[0].folder.replace(/\/[^/]*$/, "")));
  return page.section("environment", "Environment", "", warning, ...cards, folders);
};

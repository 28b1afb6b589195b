// The page of several runs.

const DASHES = ["solid", "dash", "dot", "dashdot"];
const STROKES = { solid: "", dash: "6 3", dot: "2 2.5", dashdot: "6 2.5 2 2.5" };
const SYMBOLS = ["circle", "diamond", "square", "triangle-up"];

function comparisonPage(data) {
  const chosen = { dial: 0, kind: "training", hidden: new Set() };
  const legend = element("div", { class: "legend", role: "group", "aria-label": "Runs in the plot" });
  const look = (index) => appearance(data, chosen.dial, index);

  function fillLegend() {
    const buttons = data.runs.map((run, index) => element(
      "button",
      { type: "button", "aria-pressed": String(!chosen.hidden.has(index)), onclick: () => toggle(index) },
      swatch(look(index)), caption(data, run),
    ));
    legend.replaceChildren(...buttons.filter((_, index) => data.runs[index].training.loss.length));
  }
  function toggle(index) {
    if (!chosen.hidden.delete(index)) chosen.hidden.add(index);
    fillLegend();
    redraw((box) => box.dataset.legend === "runs");
  }
  function update() {
    fillLegend();
    redraw((box) => box.dataset.legend === "runs");
  }

  const lossBox = overProgress(plot("loss-plot", "large", (colors, width) => comparisonPlot(data, chosen, look, colors, width)));
  lossBox.dataset.legend = "runs";
  const controls = [
    axisChoice(),
    choices("kind", "loss", [["training", "training, smoothed"], ["validation", "validation"]], chosen.kind, (kind) => {
      chosen.kind = kind;
      update();
    }),
    scaleChoice(),
  ];
  if (data.dials.length > 1) {
    const options = data.dials.map(({ name }, index) => [String(index), name]);
    controls.push(choices("dial", "color", options, "0", (index) => {
      chosen.dial = Number(index);
      update();
    }));
  }
  fillLegend();
  darkScheme.addEventListener("change", fillLegend);

  const parts = [
    section(
      "loss", "Loss", null,
      element("div", { class: "controls" }, ...controls), lossBox, legend, sharedBoundaryList(data),
      element("p", { class: "hint" }, `Smoothed: the mean of a logged step and ${data.smoothedOver} on either side. ${lookHint(data)}`),
    ),
    section("runs", "Runs", "Click a header to sort.", table("run-table", data.table, "Table of runs")),
  ];
  if (data.dials.length) {
    const box = plot("dial-plot", "medium", (colors) => dialPlot(data, chosen, look, colors));
    box.dataset.legend = "runs";
    parts.push(section("dials", "Final loss by dial", "Validation loss at the end of each finished run.", box));
  }
  parts.push(savingsSection(data.savings));
  if (data.messages.length) parts.push(section("messages", "Messages", "Of jobs that did not finish.", messageList(data.messages)));
  if (data.commands.length) parts.push(section("commands", "Commands", null, ...commandList(data.commands)));
  parts.push(detailSection(data));
  return parts;
}

function caption(data, run) {
  const words = data.dials.map(({ key, name }) => `${name} ${run.dials[key] ?? "-"}`);
  if (run.baseline && !("baseline.kind" in run.dials)) words.unshift(run.baseline);
  return words.length ? words.join(", ") : run.name;
}

// Colors show the chosen sweep parameter; dashes separate baselines from grown runs, or show another parameter.
function appearance(data, dialIndex, runIndex) {
  const run = data.runs[runIndex];
  const series = theme().series;
  const dial = data.dials[dialIndex];
  const look = { color: series[runIndex % series.length], dash: "solid", symbol: "circle" };
  if (dial) {
    const at = dial.values.findIndex(({ text }) => text === run.dials[dial.key]);
    const isOrdered = dial.values.every(({ number }) => number !== null);
    look.color = isOrdered ? ordered(at, dial.values.length) : series[Math.max(0, at) % series.length];
  }
  const kinds = baselineKinds(data);
  const other = otherDial(data, dialIndex);
  let place = 0;
  if (kinds.length > 1) place = kinds.indexOf(run.baseline);
  else if (other) place = other.values.findIndex(({ text }) => text === run.dials[other.key]);
  look.dash = DASHES[Math.max(0, place)] ?? "solid";
  look.symbol = SYMBOLS[Math.max(0, place)] ?? "circle";
  return look;
}

const baselineKinds = (data) => [...new Set([null, ...data.runs.map(({ baseline }) => baseline)])];
const otherDial = (data, dialIndex) => data.dials.find((dial, index) => index !== dialIndex && dial.values.length > 1 && dial.values.length <= DASHES.length);

function lookHint(data) {
  if (baselineKinds(data).length > 1) return "Solid lines are grown runs; dashed and dotted ones their baselines.";
  return data.dials.length > 1 && otherDial(data, 0) ? "Color tells one dial, the dashes another." : "";
}

function swatch({ color, dash }) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "line");
  Object.entries({ width: 26, height: 10, "aria-hidden": "true" }).forEach(([key, value]) => picture.setAttribute(key, value));
  Object.entries({ x1: 0, x2: 26, y1: 5, y2: 5, stroke: color, "stroke-width": 2.5, "stroke-dasharray": STROKES[dash] }).forEach(([key, value]) => line.setAttribute(key, value));
  picture.append(line);
  return picture;
}

// The mean position of each boundary; isShared if all runs that have it agree to within 1 % of the axis.
function sharedBoundaries(data, axis, end) {
  const places = new Map();
  data.runs.forEach(({ boundaries }) => boundaries.filter(({ at }) => at).forEach(({ label, grew, at }) => {
    const known = places.get(label) ?? { at: [], grew: new Set() };
    known.at.push(at[axis]);
    known.grew.add(grew);
    places.set(label, known);
  }));
  return [...places].map(([label, { at, grew }]) => ({
    label: grew.size === 1 && [...grew][0] ? `${label}: ${[...grew][0]}` : label,
    x: at.reduce((sum, value) => sum + value, 0) / at.length,
    isShared: Math.max(...at) - Math.min(...at) <= 0.01 * end,
  }));
}

function sharedBoundaryList(data) {
  const found = sharedBoundaries(data, "step", Infinity);
  if (!found.length) return null;
  return element("ol", { class: "marks" }, ...found.map(({ label, x }, index) =>
    element("li", {}, element("b", {}, String(index + 1)), `${label}${Number.isInteger(x) ? `, after step ${x.toLocaleString("en")}` : ""}`)));
}

function comparisonPlot(data, chosen, look, colors, width) {
  const axis = shown.axis;
  const curves = data.runs.map((run) => run[chosen.kind]);
  const end = lastOf(...curves.map((curve) => curve[axis]));
  const all = sharedBoundaries(data, axis, end);
  const marks = markLines(all.filter(({ isShared }) => isShared), end, width, colors);
  const lines = data.runs.map((run, index) => ({
    x: curves[index][axis], y: curves[index].loss, name: plain(run.name), visible: !chosen.hidden.has(index),
    mode: chosen.kind === "training" ? "lines" : "lines+markers",
    line: { color: look(index).color, width: 1.8, dash: look(index).dash }, marker: { size: 6 },
    text: curves[index].loss.map(() => plain(caption(data, run))),
    hovertemplate: "%{text}<br>%{y:.4f}<extra></extra>",
  }));
  return {
    data: lines,
    layout: {
      ...marks,
      margin: { l: 56, r: 14, t: marks.top, b: 44 },
      xaxis: progress(colors, end),
      yaxis: lossScale(colors, `${chosen.kind} loss`, curves.flatMap(({ loss }) => loss), boxHeight("loss-plot") - marks.top - 44),
      hovermode: "closest",
    },
  };
}

function dialPlot(data, chosen, look, colors) {
  const dial = data.dials[chosen.dial];
  const points = data.runs.map((run, index) => ({ run, index })).filter(({ run, index }) => run.status === "finished" && run.final.validation !== null && !chosen.hidden.has(index));
  return {
    data: [{
      x: points.map(({ run }) => plain(run.dials[dial.key] ?? "-")), y: points.map(({ run }) => run.final.validation), mode: "markers",
      marker: { size: 11, color: points.map(({ index }) => look(index).color), symbol: points.map(({ index }) => look(index).symbol), line: { color: colors.surface, width: 1 } },
      text: points.map(({ run }) => plain(caption(data, run))), hovertemplate: "%{text}<br>%{y:.4f}<extra></extra>",
    }],
    layout: {
      xaxis: scale(colors, { title: plain(dial.key), type: "category", categoryorder: "array", categoryarray: dial.values.map(({ text }) => plain(text)) }),
      yaxis: scale(colors, { title: "validation loss" }),
    },
  };
}

function savingsSection(found) {
  if (typeof found === "string") return section("savings", "Savings at equal loss", null, element("p", {}, `There is no comparison: ${found}.`));
  return section(
    "savings", "Savings at equal loss",
    `What each run took until its loss first was ${found.loss}, the highest of the finished runs' lowest. Measured as ${found.measuredAs}. Saved: against ${found.references.join("; ") || "no run"}.`,
    table("savings-table", found.table, "Table of savings"),
  );
}

function detailSection({ texts }) {
  const holder = element("div");
  const show = (index) => {
    const { commands, sample: text, config } = texts[index];
    holder.replaceChildren(
      ...commandList(commands),
      text ? sample("Sample of the last finished phase", text) : "",
      element("h3", {}, "config.yaml"),
      element("pre", { class: "config", tabindex: "0" }, config || "in the run's folder"),
    );
  };
  show(0);
  return section("details", "One run in detail", null, picker("detail-run", "run", texts.map(({ name }) => name), show), holder);
}

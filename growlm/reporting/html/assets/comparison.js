// The page of several runs.

const DASHES = ["solid", "dash", "dot", "dashdot"];
const STROKES = { solid: "", dash: "6 3", dot: "2 2.5", dashdot: "6 2.5 2 2.5" };
const KIND_KEY = "baseline.kind";
const SHARED_WIDTH = 3.2;
const LABEL = { at: 0.3, height: 17 }; // where in a shared curve its label is, and pixels
const MOST_ENTRIES = 10; // values of a setting that the key lists one by one

function comparisonPage(data) {
  const swept = data.dials.findIndex(({ key }) => key !== "seed");
  const chosen = { dial: Math.max(0, swept), kind: "training", hidden: new Set(), hasShared: false };
  const key = element("p", { class: "key" });
  const legend = element("div", { class: "legend", role: "group", "aria-label": "Runs in the plot" });
  const look = (index) => appearance(data, chosen.dial, index);

  function fillLegend() {
    const twins = twinRuns(data, chosen.kind);
    const buttons = data.runs.map((run, index) => element(
      "button",
      { type: "button", "aria-pressed": String(!chosen.hidden.has(index)), onclick: () => toggle(index) },
      swatch(look(index)), caption(data, run), twins[index] === null ? null : element("small", {}, `same curve as ${caption(data, data.runs[twins[index]])}`),
    ));
    const all = data.runs.map((_, index) => index);
    chosen.hasShared = sharedSegments(data.runs.map((one) => one[chosen.kind]), all, shown.axis).some(({ runs }) => runs.length > 1);
    key.replaceChildren(...comparisonKey(data, chosen));
    legend.replaceChildren(...buttons.filter((_, index) => data.runs[index].training.loss.length));
  }
  function toggle(index) {
    if (!chosen.hidden.delete(index)) chosen.hidden.add(index);
    redraw((box) => box.dataset.legend === "runs");
  }
  function update() {
    redraw((box) => box.dataset.legend === "runs");
  }

  const lossBox = overProgress(plot("loss-plot", "large", (colors, width) => {
    fillLegend();
    return comparisonPlot(data, chosen, look, colors, width);
  }, describeComparison(data)));
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
    controls.push(choices("dial", "color", options, String(chosen.dial), (index) => {
      chosen.dial = Number(index);
      update();
    }));
  }
  fillLegend();
  darkScheme.addEventListener("change", fillLegend);

  const parts = [
    section(
      "loss", "Loss", null,
      element("div", { class: "controls" }, ...controls), lossBox, key, legend, growthList(data),
      element("p", { class: "hint" }, `Smoothed: the mean of a logged step and ${data.smoothedOver} on either side. A click on a run hides it or shows it again.`),
    ),
  ];
  if (data.finalLosses) parts.push(finalLossSection(data, chosen, look));
  parts.push(section("runs", "Runs", `Click a header to sort. ${data.sameInAll}`, table("run-table", data.table, "Table of runs")));
  parts.push(savingsSection(data.savings));
  if (data.messages.length) parts.push(section("messages", "Messages", "Of jobs that did not finish.", messageList(data.messages)));
  if (data.commands.length) parts.push(section("commands", "Commands", null, ...commandList(data.commands)));
  parts.push(detailSection(data));
  return parts;
}

// For each run the first one with the same curve; null for a curve of its own.
function twinRuns(data, kind) {
  const known = new Map();
  return data.runs.map((run, index) => {
    const curve = JSON.stringify([run[kind][shown.axis], run[kind].loss]);
    if (!run[kind].loss.length) return null;
    if (known.has(curve)) return known.get(curve);
    known.set(curve, index);
    return null;
  });
}

function describeComparison(data) {
  const plotted = data.runs.filter(({ training }) => training.loss.length);
  return `Loss of ${plotted.length} runs against progress; the table of runs has the final losses.`;
}

// A setting of a run in words; the kind of baseline says what the run is.
function settingWords({ key, name }, value) {
  if (key !== KIND_KEY) return `${name} ${value ?? "-"}`;
  return isGrown(value) ? "grown" : `baseline ${value}`;
}

const isGrown = (kind) => kind === undefined || kind === null || kind === "null" || kind === "none";

function caption(data, run) {
  const words = data.dials.map((dial) => settingWords(dial, run.dials[dial.key]));
  if (run.baseline && !(KIND_KEY in run.dials)) words.unshift(run.baseline);
  return words.length ? words.join(", ") : run.name;
}

// Colors show the chosen sweep parameter; dashes separate baselines from grown runs, or show another parameter.
function appearance(data, dialIndex, runIndex) {
  const run = data.runs[runIndex];
  const series = theme().series;
  const dial = data.dials[dialIndex];
  const look = { color: series[runIndex % series.length], dash: "solid" };
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
  return look;
}

const baselineKinds = (data) => [...new Set([null, ...data.runs.map(({ baseline }) => baseline)])];
const otherDial = (data, dialIndex) => data.dials.find((dial, index) => index !== dialIndex && dial.values.length > 1 && dial.values.length <= DASHES.length);

// What colors, dashes and marks of the loss plot mean.
function comparisonKey(data, chosen) {
  const parts = [];
  const entry = (look, words) => parts.push(element("span", {}, swatch(look), ` ${words}`));
  const neutral = theme().boundary;
  const dial = data.dials[chosen.dial];
  const kinds = baselineKinds(data);
  if (dial) {
    const isOrdered = dial.values.every(({ number }) => number !== null);
    parts.push(element("span", { class: "title" }, `color: ${dial.name}`));
    dial.values.forEach(({ text }, at) => {
      const color = isOrdered ? ordered(at, dial.values.length) : theme().series[at % theme().series.length];
      const isKind = dial.key === KIND_KEY;
      const dash = isKind ? DASHES[isGrown(text) ? 0 : kinds.indexOf(text)] : "solid";
      if (dial.values.length <= MOST_ENTRIES || at === 0 || at === dial.values.length - 1) entry({ color, dash }, isKind ? settingWords(dial, text) : text);
      else if (at === 1) parts.push(element("span", {}, "\u2026"));
    });
  }
  const other = otherDial(data, chosen.dial);
  if (kinds.length > 1 && dial?.key === KIND_KEY) parts.push(element("span", {}, "dashes: baselines"));
  else if (kinds.length > 1) kinds.forEach((kind, at) => entry({ color: neutral, dash: DASHES[at] ?? "solid" }, kind ? `baseline ${kind}` : "grown"));
  else if (other) {
    parts.push(element("span", { class: "title" }, `dashes: ${other.name}`));
    other.values.forEach(({ text }, at) => entry({ color: neutral, dash: DASHES[at] }, text));
  }
  if (chosen.hasShared) entry({ color: theme().text, dash: "solid", width: SHARED_WIDTH }, "the same curve in several runs, drawn once: its label says in which");
  if (chosen.kind === "validation") parts.push(keyEntry("growth", "\u25cf", "a validation"));
  if (data.growths.some(({ passed }) => passed)) parts.push(keyEntry("growth", "\u25b2", "growth"));
  if (data.growths.some(({ passed }) => !passed)) parts.push(keyEntry("failed", "\u2715", "failed growth"));
  return parts;
}

function swatch({ color, dash, width = 2.5 }) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "line");
  Object.entries({ width: 26, height: 10, "aria-hidden": "true" }).forEach(([key, value]) => picture.setAttribute(key, value));
  Object.entries({ x1: 0, x2: 26, y1: 5, y2: 5, stroke: color, "stroke-width": width, "stroke-dasharray": STROKES[dash] }).forEach(([key, value]) => line.setAttribute(key, value));
  picture.append(line);
  return picture;
}

// Which runs, in a few words: all of them, the settings that only they have, or how many.
function describeGroup(data, indices) {
  const runs = indices.map((index) => data.runs[index]);
  const plotted = data.runs.filter(({ training }) => training.loss.length);
  if (runs.length === plotted.length && runs.length > 1) return `all ${runs.length} runs`;
  if (runs.length === 1) return caption(data, runs[0]);
  const common = data.dials.filter(({ key }) => runs.every(({ dials }) => dials[key] === runs[0].dials[key]));
  const others = plotted.filter((run) => !runs.includes(run));
  const isTheirs = common.length > 0 && others.every((run) => common.some(({ key }) => run.dials[key] !== runs[0].dials[key]));
  const telling = common.filter(({ key }) => others.some((run) => run.dials[key] !== runs[0].dials[key]));
  const words = isTheirs ? telling.map((dial) => settingWords(dial, runs[0].dials[dial.key])).join(", ") : runs.map((run) => caption(data, run)).join("; ");
  return isTheirs || runs.length <= 3 ? `${runs.length} runs: ${words}` : `${runs.length} runs`;
}

// Where each growth lies; runs that grew after the same step share a place, and no place is an average.
function growthList(data) {
  const labels = [...new Set(data.growths.map(({ label, grew }) => JSON.stringify([label, grew])))];
  if (!labels.length) return null;
  return element("ol", { class: "marks" }, ...labels.map((key, index) => {
    const [label, grew] = JSON.parse(key);
    const places = data.growths.filter((one) => one.label === label && one.grew === grew).map(({ step, runs, passed }) =>
      `${step === null ? "" : `after step ${count(step)} `}(${describeGroup(data, runs)}${passed ? "" : "; checks failed"})`);
    return element("li", {}, element("b", {}, String(index + 1)), element("span", { class: "name" }, grew ? `${label}: ${grew}` : label), `, ${places.join("; ")}`);
  }));
}

// Split the curves where runs part: each segment is drawn once for all runs whose points are the same up to its end.
function sharedSegments(curves, indices, axis) {
  const phasesOf = curves.map(({ phases }) => {
    const starts = phases.flatMap((name, index) => (index === 0 || name !== phases[index - 1] ? [index] : []));
    return starts.map((start, index) => [start, starts[index + 1] ?? phases.length]);
  });
  const keyOf = (index, [start, end]) => `${curves[index][axis].slice(start, end)}|${curves[index].loss.slice(start, end)}`;
  const segments = [];
  const follow = (group, depth, segment) => {
    const next = new Map();
    group.forEach((index) => {
      const phase = phasesOf[index][depth];
      const key = phase ? keyOf(index, phase) : "";
      next.set(key, [...(next.get(key) ?? []), index]);
    });
    next.forEach((members, key) => {
      if (!key) return;
      const [start, end] = phasesOf[members[0]][depth];
      const isSame = segment && members.length === segment.runs.length;
      const part = isSame ? segment : { runs: members, start: segment ? start - 1 : start, end };
      part.end = end;
      if (!isSame) segments.push(part);
      follow(members, depth + 1, part);
    });
  };
  follow(indices, 0, null);
  return segments;
}

function comparisonPlot(data, chosen, look, colors, width) {
  const axis = shown.axis;
  const curves = data.runs.map((run) => run[chosen.kind]);
  const end = lastOf(...curves.map((curve) => curve[axis]));
  const visible = data.runs.map((_, index) => index).filter((index) => !chosen.hidden.has(index) && curves[index].loss.length);
  const segments = sharedSegments(curves, visible, axis);
  const marks = comparisonMarks(data, curves, chosen, axis);
  const line = markLines(commonMarks(data, marks), end, width, colors);
  // Wide lines first, so that none hides a thin one.
  segments.sort((one, two) => two.runs.length - one.runs.length);
  const drawn = segments.map((segment) => segmentTrace(data, chosen, curves, segment, look, colors));
  const yaxis = lossScale(colors, `${chosen.kind} loss`, curves.flatMap(({ loss }) => loss), boxHeight("loss-plot") - line.top - 44);
  const labels = shareLabels(data, drawn, { end, width: width - 70, height: boxHeight("loss-plot") - line.top - 44, range: yaxis.range }, colors);
  return {
    data: [...drawn, ...marks.map((one) => growthMarker(data, one, colors))],
    layout: {
      shapes: line.shapes, annotations: [...line.annotations, ...labels],
      margin: { l: 56, r: 14, t: line.top, b: 44 },
      xaxis: progress(colors, end),
      yaxis,
      hovermode: "closest",
    },
  };
}

// Labels beside shared curves, where there is room for them and no other label.
function shareLabels(data, drawn, { end, width, height, range }, colors) {
  const isLog = Boolean(range);
  const values = drawn.flatMap(({ y }) => y.filter((loss) => loss !== null)).map((loss) => (isLog ? Math.log10(loss) : loss));
  const [low, high] = range ?? (values.length ? [smallest(values), largest(values)] : [0, 1]);
  const taken = [];
  return drawn.filter(({ meta }) => meta.isShared).map((trace) => {
    const at = Math.floor(trace.x.length * LABEL.at);
    const y = isLog ? Math.log10(trace.y[at]) : trace.y[at];
    const left = (trace.x[at] / end) * width;
    const words = describeGroup(data, trace.meta.runs);
    const text = [words, words.split(":")[0]].find((one) => left + textWidth(one) + 12 < width && textWidth(one) < ((trace.x.at(-1) - trace.x[0]) / end) * width);
    if (!text || trace.y[at] === null || !Number.isFinite(y)) return null;
    const box = { left, right: left + textWidth(text) + 8, bottom: ((y - low) / (high - low)) * height };
    if (taken.some((one) => one.left < box.right && box.left < one.right && Math.abs(one.bottom - box.bottom) < LABEL.height)) return null;
    taken.push(box);
    return {
      x: trace.x[at], y, xanchor: "left", xshift: 4, yanchor: "bottom", yshift: 3, text: plain(text), showarrow: false,
      font: { size: 12, color: colors.text }, bgcolor: translucent(colors.surface, 0.8), borderpad: 1,
    };
  }).filter(Boolean);
}

function segmentTrace(data, chosen, curves, { runs, start, end }, look, colors) {
  const looks = runs.map(look);
  const isOneColor = looks.every(({ color }) => color === looks[0].color);
  const isOneDash = looks.every(({ dash }) => dash === looks[0].dash);
  const curve = curves[runs[0]];
  const isShared = runs.length > 1;
  const style = { color: isOneColor ? looks[0].color : colors.text, width: isShared ? SHARED_WIDTH : 1.8, dash: isOneDash ? looks[0].dash : "solid" };
  const names = isShared ? `${describeGroup(data, runs)}: the same curve` : caption(data, data.runs[runs[0]]);
  return {
    x: curve[shown.axis].slice(start, end), y: curve.loss.slice(start, end), name: plain(isShared ? names : data.runs[runs[0]].name),
    mode: chosen.kind === "training" ? "lines" : "lines+markers", line: style, marker: { size: 6 }, meta: { runs, isShared },
    text: curve.loss.slice(start, end).map(() => plain(names)), hovertemplate: "%{text}<br>%{y:.4f}<extra></extra>",
  };
}

// The points of the curves after which runs grew; equal points are one mark.
function comparisonMarks(data, curves, chosen, axis) {
  const marks = new Map();
  data.growths.forEach((growth, place) => growth.runs.filter((index) => !chosen.hidden.has(index)).forEach((index) => {
    const at = curves[index].phases.lastIndexOf(growth.after);
    if (at < 0 || curves[index].loss[at] === null) return;
    const [x, y] = [curves[index][axis][at], curves[index].loss[at]];
    const key = JSON.stringify([place, x, y]);
    marks.set(key, { growth, place, x, y, runs: [...(marks.get(key)?.runs ?? []), index] });
  }));
  return [...marks.values()];
}

// Growths that are labeled above the plot: where all runs that grew so did it at the same place on this axis.
function commonMarks(data, marks) {
  const byLabel = new Map();
  marks.forEach(({ growth, x }) => {
    const words = growth.grew ? `${growth.label}: ${growth.grew}` : growth.label;
    byLabel.set(words, new Set([...(byLabel.get(words) ?? []), x]));
  });
  const places = [...byLabel].map(([label, at]) => ({ label, at: [...at] }));
  return places.every(({ at }) => at.length === 1) ? places.map(({ label, at }) => ({ label, x: at[0] })) : [];
}

function growthMarker(data, { growth, x, y, runs }, colors) {
  const { label, grew, step, passed } = growth;
  const words = `${label}${grew ? `: ${grew}` : ""}${passed ? "" : " failed"}${step === null ? "" : `, after step ${count(step)}`}<br>${plain(describeGroup(data, runs))}`;
  return {
    x: [x], y: [y], mode: "markers", name: "growth", cliponaxis: false, hovertemplate: `${words}<extra></extra>`, meta: { runs, growth: true },
    marker: { symbol: passed ? "triangle-up" : "x", size: 10, color: passed ? colors.boundary : colors.bad, line: { color: colors.surface, width: 1 } },
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

// The first plot of a run: loss, and below it on the same axis how many parameters the model has.

const PANEL_GAP = 0.07; // between loss and parameters, as a part of the plot's height
const PANEL = 0.27; // the parameters' part of it
const GROWTH_SIZE = 10;

function lossPlot(data, colors, width) {
  const { rows, validation, bands } = data;
  const axis = shown.axis;
  const end = lastOf(rows[axis], validation[axis]);
  const area = plotArea(width);
  const marks = growthMarks(data, colors);
  const labels = placeLabels(marks, end, width, area, colors);
  const hasSizes = bands.some(({ total }) => total !== null);
  const domain = hasSizes ? [PANEL + PANEL_GAP, 1] : [0, 1];
  const margin = { ...area, t: labels.top, b: 42 };
  const height = boxHeight("loss-plot") - margin.t - margin.b;
  const evaluated = validation.sets.flatMap(({ loss }) => loss);
  const losses = [...rows.loss, ...validation.loss, ...evaluated];
  return {
    data: [
      ...lossTraces(data, colors),
      ...(hasSizes ? sizeTraces(data, marks, colors) : []),
    ],
    layout: {
      margin,
      shapes: [...bandShapes(bands, colors), ...marks.filter(({ grows }) => grows).map((mark) => growthLine(mark, colors))],
      annotations: [...labels.annotations, ...(hasSizes ? sizeLabels(bands, end, width, area, height, colors) : [])],
      xaxis: { ...progress(colors, end), automargin: false, anchor: hasSizes ? "y2" : "y" },
      yaxis: { ...lossScale(colors, "loss", losses, height * (domain[1] - domain[0])), domain, automargin: false },
      yaxis2: {
        ...scale(colors, { title: "parameters", nticks: 4, exponentformat: "B" }),
        domain: [0, PANEL], automargin: false, fixedrange: true, range: [0, 1.3 * largest([1, ...bands.map(({ total }) => total ?? 0)])],
      },
      hovermode: "x unified",
      hoversubplots: "axis",
    },
  };
}

function lossTraces({ rows, validation, bands }, colors) {
  const axis = shown.axis;
  const { training, validation: evaluated } = colors.hues;
  const diamond = (color, symbol) => ({ color, size: 8, symbol, line: { color: colors.surface, width: 1 } });
  const position = rows.phase.map((at, index) => {
    const { name, steps } = bands[at];
    return `${plain(name)}, step ${count(rows.phaseStep[index])} of ${count(steps)}${axis === "step" ? "" : ` (${count(rows.step[index])} of the run)`}`;
  });
  return [
    // It has no mark of its own, and gives the hover box its line about the phase.
    { x: rows[axis], y: rows.loss, name: "phase", mode: "markers", marker: { opacity: 0, color: colors.boundary }, text: position, hovertemplate: "%{text}", showlegend: false },
    { x: rows[axis], y: rows.loss, name: "training", mode: "lines", line: { color: training, width: 1 }, opacity: 0.45, hovertemplate: "%{y:.4f}" },
    { x: rows[axis], y: rows.smooth, name: "training, smoothed", mode: "lines", line: { color: training, width: 2 }, hovertemplate: "%{y:.4f}" },
    { x: validation[axis], y: validation.loss, name: "validation", mode: "markers", marker: diamond(evaluated, "diamond"), hovertemplate: "%{y:.4f}" },
    ...validation.sets.map(({ name, loss }, index) => ({
      x: validation[axis], y: loss, name: plain(name), mode: "markers", hovertemplate: "%{y:.4f}",
      marker: diamond(mix(evaluated, colors.text, 0.25 + 0.25 * (index % 3)), ["square", "triangle-up", "triangle-down", "pentagon"][index % 4]),
    })),
  ];
}

// What the marks of the plot mean; it is text, so that it is read out, printed and never in the plot's way.
function lossKey({ validation, bands, boundaries }) {
  const signs = ["\u25a0", "\u25b2", "\u25bc", "\u2b1f"];
  return element(
    "p", { class: "key" },
    keyEntry("training", "\u2014", "training loss, faint as measured and strong smoothed"), keyEntry("validation", "\u25c6", "validation"),
    ...validation.sets.map(({ name }, index) => keyEntry("validation", signs[index % signs.length], name)),
    bands.some(({ total }) => total !== null) ? keyEntry("parameters", "\u2014", "parameters") : null,
    bands.some(({ active }) => active !== null) ? keyEntry("parameters", "\u22ef", "active per token") : null,
    boundaries.some(({ passed }) => passed) ? keyEntry("growth", "\u25b2", "growth") : null,
    boundaries.some(({ passed }) => !passed) ? keyEntry("failed", "\u2715", "failed growth") : null,
  );
}

function keyEntry(hue, sign, words) {
  return element("span", {}, element("b", { style: `color: var(--hue-${hue})`, "aria-hidden": "true" }, sign), ` ${words}`);
}

// Steps of the plot: each phase's value from where it starts to where it ends.
function steppedValues(bands, value) {
  const known = bands.filter((band) => value(band) !== null && value(band) !== undefined);
  return { x: known.flatMap(({ start, end }) => [start[shown.axis], end[shown.axis]]), y: known.flatMap((band) => [value(band), value(band)]) };
}

function sizeTraces({ bands }, marks, colors) {
  const hue = colors.hues.parameters;
  const line = (name, key, settings) => ({
    ...steppedValues(bands, (band) => band[key]), text: steppedValues(bands, (band) => band[key] !== null ? band[`${key}Text`] : null).y,
    name, yaxis: "y2", mode: "lines", hovertemplate: "%{text}", ...settings,
  });
  const made = marks.filter(({ grows, passed }) => grows && passed);
  const failed = marks.filter(({ grows, passed }) => grows && !passed);
  const markers = (name, of, marker) => ({
    x: of.map(({ x }) => x), y: of.map(({ total }) => total), name, yaxis: "y2", mode: "markers", hoverinfo: "skip", marker, cliponaxis: false,
  });
  return [
    line("parameters", "total", { line: { color: hue, width: 2 }, fill: "tozeroy", fillcolor: translucent(hue, 0.12) }),
    line("active per token", "active", { line: { color: hue, width: 1.5, dash: "dot" } }),
    ...(made.length ? [markers("growth", made, { symbol: "triangle-up", size: GROWTH_SIZE, color: colors.boundary })] : []),
    ...(failed.length ? [markers("failed growth", failed, { symbol: "x", size: GROWTH_SIZE, color: colors.bad })] : []),
  ];
}

// A mark for each phase, at its start, and for each growth that no phase followed.
function growthMarks({ bands, boundaries }) {
  const failed = new Set(boundaries.filter(({ passed }) => !passed).map(({ to }) => to));
  const trained = new Set(bands.map(({ name }) => name));
  const phases = bands.map(({ name, grew, start, total }, index) => ({
    x: start[shown.axis], name, grew, total, grows: index > 0, passed: !failed.has(name),
  }));
  const unfinished = boundaries.filter(({ to, at }) => at && !trained.has(to)).map(({ to, grew, at, passed }) => ({
    x: at[shown.axis], name: to, grew, total: bands.at(-1)?.total ?? null, grows: true, passed,
  }));
  return [...phases, ...unfinished].map((mark) => ({ ...mark, color: mark.passed ? null : "bad", words: markWords(mark) }));
}

function markWords({ name, grew, passed }) {
  return [`${name}${grew ? `: ${grew}` : ""}${passed ? "" : " failed"}`, passed ? name : `${name} failed`];
}

function growthLine({ x, passed }, colors) {
  const line = passed ? { color: colors.boundary, width: 1.2, dash: "dash" } : { color: colors.bad, width: 2 };
  return { type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line };
}

// The number of parameters at each step of the line, where there is room for it.
function sizeLabels(bands, end, width, area, height, colors) {
  const room = width - area.l - area.r;
  const top = 1.3 * largest([1, ...bands.map(({ total }) => total ?? 0)]);
  const pixels = (value) => (value / top) * height * PANEL;
  const label = (band, value, text) => ({
    x: band.start[shown.axis], y: value, yref: "y2", xanchor: "left", yanchor: "bottom", xshift: 5, text, showarrow: false,
    font: { size: 11.5, color: colors.text }, borderpad: 1,
  });
  return bands.filter(({ total }) => total !== null).flatMap((band) => {
    const space = ((band.end[shown.axis] - band.start[shown.axis]) / (end * 1.01)) * room;
    const fits = (text) => textWidth(text) + 8 < space;
    const made = fits(band.totalText) ? [label(band, band.total, band.totalText)] : [];
    const active = `${band.activeText} active`;
    const isApart = band.active !== null && pixels(band.total - band.active) > 30;
    if (isApart && fits(active)) made.push(label(band, band.active, active));
    return made;
  });
}

// What the plot shows, for those who do not see it.
function describeLoss({ rows, bands }) {
  const sizes = bands.map(({ name, totalText }) => `${name} ${totalText}`).join(", ");
  if (!rows.loss.length) return "Training loss: no steps yet.";
  return `Training loss against progress, from ${rows.loss[0]} to ${rows.loss.at(-1)} over ${count(rows.step.at(-1))} steps. Parameters by phase: ${sizes}.`;
}

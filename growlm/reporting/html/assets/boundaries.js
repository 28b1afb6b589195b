// One card for each growth: what it did, what the checks found, the loss around it, and the drift of each layer.

const AROUND = 30; // steps on either side
const GROWTH_AT = 0.5; // between the last step before (0) and the first one after (1)
const DRIFT = { top: 1, bottom: -9 }; // exponents, the same for every growth and run
const SMALL_AREA = { l: 52, r: 10, t: 10, b: 40 };

function boundaryCard(boundary, index) {
  const facts = boundary.facts.flatMap(({ label, value }) => [element("dt", {}, label), element("dd", {}, value)]);
  const checks = boundary.checks.map(({ name, status: state, summary }) =>
    element("li", {}, status(state, state === "not_applicable" ? "does not apply" : undefined), name, summary ? element("small", {}, summary) : null),
  );
  const told = element(
    "div", { class: "told" },
    element("h3", {}, `${boundary.name}${boundary.grew ? `: ${boundary.grew}` : ""} `, boundary.passed ? null : status("failed")),
    element("ul", { class: "lines" }, ...boundary.lines.map((line) => element("li", {}, line))),
    element("p", { class: "jump" }, boundary.jump, " ", element("small", {}, jumpWords(boundary))),
    element("dl", { class: "facts" }, ...facts),
  );
  const zoom = boundary.zoom.step.length
    ? figure("Around the growth", "", plot(`zoom-${index}`, "small", (colors) => zoomPlot(boundary, colors), describeZoom(boundary)))
    : null;
  const drift = boundary.drift.length
    ? figure("Drift per layer", driftNote(boundary), plot(`drift-${index}`, "small", (colors) => driftPlot(boundary, colors), driftNote(boundary)))
    : null;
  return element("div", { class: "boundary" }, told, zoom, drift, element("ul", { class: "checks" }, ...checks));
}

// What the marks of all cards mean; it is text, so that it is read out and printed too.
function boundaryKey() {
  return element(
    "p", { class: "key" },
    keyEntry("training", "\u2014", "training loss"), keyEntry("validation", "\u25c6", "validation"),
    keyEntry("probe", "\u25cb", "probe loss before the growth"), keyEntry("probe", "\u25cf", "probe loss after it, inside the ring if nothing was lost"),
    keyEntry("drift", "\u25cf", "largest difference of a layer"), keyEntry("drift-mean", "\u25a0", "mean"),
  );
}

function describeZoom({ name, zoom }) {
  const [before, after] = zoom.probe;
  return `Loss within ${AROUND} steps of the growth ${name}; probe loss ${before ?? "unknown"} before and ${after ?? "unknown"} after it.`;
}

function zoomPlot({ zoom, passed }, colors) {
  const { training, validation, probe } = colors.hues;
  const color = passed ? colors.boundary : colors.bad;
  const sign = (step) => (step > 0 ? `${step} after` : `${-step} before the last one`);
  const [before, after] = zoom.probe;
  return {
    data: [
      {
        x: zoom.step, y: zoom.loss, name: "training", mode: "lines+markers", line: { color: training, width: 1.2 }, marker: { size: 3.5 },
        text: zoom.step.map(sign), hovertemplate: "step %{text}: %{y:.4f}<extra></extra>",
      },
      {
        x: zoom.validationStep, y: zoom.validation, name: "validation", mode: "markers",
        marker: { color: validation, size: 8, symbol: "diamond", line: { color: colors.surface, width: 1 } },
        hovertemplate: "validation %{y:.4f}<extra></extra>",
      },
      // A growth that keeps the function puts the dot into the middle of the ring.
      {
        x: [GROWTH_AT], y: [before], name: "probe before", mode: "markers", marker: { color: probe, size: 14, symbol: "circle-open", line: { width: 2 } },
        hovertemplate: "probe before %{y:.7~g}<extra></extra>",
      },
      { x: [GROWTH_AT], y: [after], name: "after", mode: "markers", marker: { color: probe, size: 6 }, hovertemplate: "probe after %{y:.7~g}<extra></extra>" },
    ],
    layout: {
      shapes: [{ type: "line", x0: GROWTH_AT, x1: GROWTH_AT, yref: "paper", y0: 0, y1: 1, layer: "below", line: { color, width: 1.2, dash: passed ? "dash" : "solid" } }],
      margin: SMALL_AREA,
      xaxis: { ...scale(colors, { title: "steps since the growth", tickvals: [-30, -15, 0, 15, 30], tickangle: 0 }), range: [-AROUND - 1, AROUND + 1], automargin: false },
      yaxis: { ...scale(colors, { nticks: 5 }), automargin: false },
    },
  };
}

function driftNote({ drift }) {
  const moved = drift.some(({ largest: most }) => most !== 0);
  return moved ? "at the output of each layer" : `0 after each of the ${drift.length} layers`;
}

// The axis is logarithmic and has no zero: layers without any difference are drawn on a line below the rest.
function driftPlot({ drift, tolerance }, colors) {
  const { top, bottom } = DRIFT;
  const zero = bottom - 1.5;
  const height = (value) => (value === null ? null : value > 0 ? Math.min(top + 0.5, Math.max(bottom, Math.log10(value))) : zero);
  const ticks = [zero, -9, -6, -3, 0];
  const trace = (key, color, symbol) => ({
    x: drift.map(({ layer }) => layer), y: drift.map((one) => height(one[key])), name: key, mode: "lines+markers",
    line: { color, width: 1.2 }, marker: { color, size: 6, symbol },
    text: drift.map((one) => `layer ${one.layer}${one.old === null ? ", new at the input" : `, from layer ${one.old}`}: ${key} ${one[key] === null ? "not finite" : one[key] ? one[key].toExponential(1) : "0"}`),
    hovertemplate: "%{text}<extra></extra>",
  });
  const limit = tolerance > 0 ? [{
    type: "line", xref: "paper", x0: 0, x1: 1, y0: Math.log10(tolerance), y1: Math.log10(tolerance), line: { color: colors.bad, width: 1, dash: "dot" },
  }] : [];
  return {
    data: [trace("largest", colors.hues.drift, "circle"), trace("mean", mix(colors.hues.drift, colors.surface, 0.45), "square")],
    layout: {
      margin: SMALL_AREA,
      shapes: limit,
      annotations: limit.map(({ y0 }) => ({
        xref: "paper", x: 1, xanchor: "right", y: y0, yanchor: "bottom", text: "tolerance", showarrow: false, font: { size: 11, color: colors.bad }, borderpad: 1,
      })),
      xaxis: { ...scale(colors, { title: "layer of the grown model", tickmode: drift.length <= 12 ? "linear" : "auto", dtick: 1 }), automargin: false },
      yaxis: {
        ...scale(colors, { tickvals: ticks, ticktext: ticks.map((exponent) => (exponent === zero ? "0" : exponent ? `1e${exponent}` : "1")) }),
        range: [zero - 0.6, top + 0.6], automargin: false,
      },
    },
  };
}

// What kind of growth a jump belongs to.
function jumpWords({ lossless, passed }) {
  if (!lossless) return "jump; this growth is not lossless";
  return passed ? "jump of a lossless growth" : "jump of a growth that should lose nothing";
}

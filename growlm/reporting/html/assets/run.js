// The page of one run.

function runPage(data) {
  const parts = [
    section(
      "loss", "Loss", null,
      element("div", { class: "controls" }, axisChoice(), scaleChoice()),
      plot("loss-plot", "large", (colors, width) => lossPlot(data, colors, width)),
      boundaryList(data.boundaries),
      element(
        "p", { class: "hint" },
        `Smoothed: the mean of a logged step and ${data.smoothedOver} on either side. The switch sets the axis of every plot over time on this page. `,
        "Drag to zoom, double-click to see all again.",
      ),
    ),
  ];
  if (data.boundaries.length) {
    parts.push(section(
      "boundaries", "Boundaries",
      "Jump: the change of loss on a frozen probe, in fp32, as the model grew. Drift: check 4, how far the residual stream moved after each layer.",
      ...data.boundaries.map(boundaryCard),
    ));
  }
  parts.push(section("phases", "Phases", null, table("phase-table", data.phases), evaluationTable(data), sizePlots(data)));
  if (data.router.length) parts.push(routerSection(data));
  const measures = measurePlots(data);
  if (measures) parts.push(section("throughput", "Throughput and optimization", null, measures));
  if (data.samples.length) {
    const samples = data.samples.map(({ phase, text }) => sample(phase, text));
    parts.push(section("samples", "Samples", "What the model of each phase wrote after its training.", element("div", { class: "samples" }, ...samples)));
  }
  if (data.warnings.length) parts.push(section("warnings", "Warnings", null, messageList(data.warnings)));
  parts.push(section("commands", "Commands", null, ...commandList(data.commands)));
  parts.push(section("config", "Config", "config.yaml, everything resolved.", element("pre", { class: "config", tabindex: "0" }, data.config)));
  return parts;
}

function axisChoice() {
  return choices("axis", "against", Object.entries(AXES), shown.axis, (axis) => {
    shown.axis = axis;
    redraw((box) => box.dataset.over === "progress");
  });
}

function scaleChoice() {
  return choices("scale", "loss axis", [["linear", "linear"], ["log", "log"]], shown.scale, (kind) => {
    shown.scale = kind;
    redraw((box) => box.id === "loss-plot");
  });
}

function overProgress(box) {
  box.dataset.over = "progress";
  return box;
}

function lastOf(...lists) {
  const ends = lists.flatMap((list) => list.slice(-1)).filter((value) => value !== null);
  return ends.length ? Math.max(...ends) : 1;
}

function evaluationTable({ evaluation }) {
  if (!evaluation) return null;
  return figure("Evaluation sets", "loss before the first step and after the last; bits per byte", table("evaluation-table", evaluation));
}

function lossPlot(data, colors, width) {
  const { rows, validation } = data;
  const axis = shown.axis;
  const end = lastOf(rows[axis], validation[axis]);
  const placed = data.boundaries.filter(({ at }) => at).map(({ at, name, grew }) => ({ x: at[axis], label: grew ? `${name}: ${grew}` : name }));
  const marks = markLines(placed, end, width, colors);
  const [blue, orange, ...others] = colors.series;
  const evaluated = validation.sets.flatMap(({ loss }) => loss);
  return {
    data: [
      { x: rows[axis], y: rows.loss, name: "training", mode: "lines", line: { color: blue, width: 1 }, opacity: 0.5, hoverinfo: "skip" },
      { x: rows[axis], y: rows.smooth, name: "training, smoothed", mode: "lines", line: { color: blue, width: 2 }, hovertemplate: "%{y:.4f}" },
      {
        x: validation[axis], y: validation.loss, name: "validation", mode: "markers",
        marker: { color: orange, size: 8, symbol: "diamond", line: { color: colors.surface, width: 1 } }, hovertemplate: "%{y:.4f}",
      },
      ...validation.sets.map(({ name, loss }, index) => ({
        x: validation[axis], y: loss, name: plain(name), mode: "markers",
        marker: { color: others[index % others.length], size: 8, symbol: "square", line: { color: colors.surface, width: 1 } }, hovertemplate: "%{y:.4f}",
      })),
    ],
    layout: {
      ...marks,
      margin: { l: 56, r: 14, t: marks.top, b: 72 },
      xaxis: progress(colors, end),
      yaxis: lossScale(colors, "loss", [...rows.loss, ...validation.loss, ...evaluated], boxHeight("loss-plot") - marks.top - 72),
      hovermode: "x unified",
      showlegend: true,
      legend: { orientation: "h", x: 0, yref: "container", y: 0.01, yanchor: "bottom", font: { color: colors.text } },
    },
  };
}

function boundaryList(boundaries) {
  if (!boundaries.length) return null;
  const items = boundaries.map(({ name, grew, at, jump }, index) =>
    element(
      "li", {},
      element("b", {}, String(index + 1)),
      `${name}${grew ? `: ${grew}` : ""}${at ? `, after step ${at.step.toLocaleString("en")}` : ""}; jump\u00a0${jump}`,
    ),
  );
  return element("ol", { class: "marks" }, ...items);
}

function boundaryCard(boundary, index) {
  const facts = boundary.facts.flatMap(({ label, value }) => [element("dt", {}, label), element("dd", {}, value)]);
  const checks = boundary.checks.map(({ name, status: state, summary }) =>
    element("li", {}, status(state, state === "not_applicable" ? "does not apply" : undefined), name, summary ? element("small", {}, summary) : null),
  );
  const told = element(
    "div", { class: "told" },
    element("h3", {}, `${boundary.name}${boundary.grew ? `: ${boundary.grew}` : ""} `, boundary.passed ? null : status("failed")),
    element("ul", { class: "lines" }, ...boundary.lines.map((line) => element("li", {}, line))),
    element("p", { class: "jump" }, boundary.jump, " ", element("small", {}, boundary.lossless ? "jump of a lossless growth" : "jump; this growth is not lossless")),
    element("dl", { class: "facts" }, ...facts),
  );
  const zoom = boundary.zoom.step.length
    ? figure("Around the boundary", "training loss, validation", plot(`zoom-${index}`, "small", (colors) => zoomPlot(boundary, colors)))
    : null;
  const hasMoved = boundary.drift.some(({ largest: most }) => most !== 0);
  const drift = boundary.drift.length && !hasMoved
    ? figure("Drift per layer", "", element("p", { class: "hint" }, `0 after each of the ${boundary.drift.length} layers: they agree to the last bit.`))
    : boundary.drift.length
    ? figure("Drift per layer", "largest and mean difference", plot(`drift-${index}`, "small", (colors) => driftPlot(boundary, colors)))
    : null;
  return element("div", { class: "boundary" }, told, zoom, drift, element("ul", { class: "checks" }, ...checks));
}

function zoomPlot({ zoom, at }, colors) {
  const [blue, orange] = colors.series;
  const line = at ? [{ type: "line", x0: at.step, x1: at.step, yref: "paper", y0: 0, y1: 1, line: { color: colors.boundary, width: 1.2, dash: "dash" } }] : [];
  return {
    data: [
      { x: zoom.step, y: zoom.loss, mode: "lines+markers", line: { color: blue, width: 1.2 }, marker: { size: 3 }, hovertemplate: "step %{x}: %{y:.4f}<extra></extra>" },
      {
        x: zoom.validationStep, y: zoom.validation, mode: "markers",
        marker: { color: orange, size: 8, symbol: "diamond", line: { color: colors.surface, width: 1 } },
        hovertemplate: "validation %{y:.4f}<extra></extra>",
      },
    ],
    layout: {
      shapes: line,
      margin: { l: 46, r: 8, t: 8, b: 38 },
      xaxis: scale(colors, { title: "step" }),
      yaxis: scale(colors, { nticks: 5 }),
    },
  };
}

// A logarithmic axis has no zero: layers without any difference are drawn on a separate line below the rest.
function driftPlot({ drift }, colors) {
  const values = drift.flatMap(({ largest, mean }) => [largest, mean]).filter((value) => value > 0);
  const top = values.length ? Math.ceil(Math.log10(largest(values))) : 0;
  const bottom = values.length ? Math.floor(Math.log10(smallest(values))) : -1;
  const zero = bottom - 1;
  const step = Math.max(1, Math.ceil((top - bottom) / 4));
  const ticks = [zero];
  for (let exponent = bottom; values.length && exponent <= top; exponent += step) ticks.push(exponent);
  const height = (value) => (value === null ? null : value > 0 ? Math.log10(value) : zero);
  const trace = (key, color, symbol) => ({
    x: drift.map(({ layer }) => layer), y: drift.map((one) => height(one[key])), name: key, mode: "lines+markers",
    line: { color: color, width: 1.2 }, marker: { color: color, size: 6, symbol },
    text: drift.map((one) => `layer ${one.layer}${one.old === null ? ", new at the input" : `, from layer ${one.old}`}: ${key} ${one[key] === null ? "not finite" : one[key].toExponential(1)}`),
    hovertemplate: "%{text}<extra></extra>",
  });
  return {
    data: [trace("largest", colors.series[0], "circle"), trace("mean", colors.series[2], "square")],
    layout: {
      margin: { l: 46, r: 8, t: 8, b: 38 },
      xaxis: scale(colors, { title: "layer of the grown model", tickmode: drift.length <= 12 ? "linear" : "auto", dtick: 1 }),
      yaxis: scale(colors, {
        tickvals: ticks, ticktext: ticks.map((exponent) => (exponent === zero ? "0" : `1e${exponent}`)), range: [zero - 0.4, Math.max(top, zero + 1) + 0.4],
      }),
      showlegend: true,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom", font: { size: 11, color: colors.text } },
    },
  };
}

function sizePlots({ sizes }) {
  if (!sizes.length) return null;
  const names = sizes.map(({ phase }) => plain(phase));
  const parameters = plot("parameter-plot", "small", (colors) => bars(colors, names, [
    ["active", sizes.map(({ active }) => active), colors.series[0]],
    ["idle", sizes.map(({ total, active }) => total - active), mix(colors.series[0], colors.surface, 0.6)],
  ], ""));
  const made = [figure("Parameters", "active for a token, and idle", parameters)];
  if (sizes.some(({ memory }) => memory)) {
    const memory = plot("memory-plot", "small", (colors) => bars(colors, names, [["peak", sizes.map((size) => size.memory), colors.series[2]]], "B"));
    made.push(figure("Peak memory", "of the process, growth included", memory));
  }
  return element("div", { class: "pair", style: "margin-top: 14px" }, ...made);
}

function bars(colors, names, series, unit) {
  return {
    data: series.map(([name, values, color]) => ({
      type: "bar", orientation: "h", y: names, x: values, name, marker: { color: color }, hovertemplate: `%{y}: %{x:.4s}${unit} ${name}<extra></extra>`,
    })),
    layout: {
      barmode: "stack",
      bargap: 0.35,
      margin: { l: 60, r: 14, t: series.length > 1 ? 24 : 8, b: 34 },
      xaxis: scale(colors, { tickformat: "~s", ticksuffix: unit, rangemode: "tozero" }),
      yaxis: scale(colors, { autorange: "reversed", type: "category", ticksuffix: " " }),
      showlegend: series.length > 1,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom", font: { size: 11, color: colors.text }, traceorder: "normal" },
    },
  };
}

function measurePlots({ rows, boundaries }) {
  const titles = { tokens_per_second: ["Throughput", "tokens per second"], lr: ["Learning rate", ""], grad_norm: ["Gradient norm", "before clipping"], mfu: ["MFU", "share of the device's peak"] };
  const made = Object.entries(titles)
    .filter(([key]) => rows[key])
    .map(([key, [title, note]], index) =>
      figure(title, note, overProgress(plot(`${key}-plot`, "small", (colors) => ({
        data: [{ x: rows[shown.axis], y: rows[key], mode: "lines", line: { color: colors.series[index], width: 1.3 }, hovertemplate: "%{y:.4~s}<extra></extra>" }],
        layout: {
          shapes: thinLines(boundaries, colors),
          margin: { l: 48, r: 8, t: 8, b: 38 },
          xaxis: progress(colors, lastOf(rows[shown.axis])),
          yaxis: scale(colors, { rangemode: "tozero", nticks: 5, exponentformat: key === "tokens_per_second" ? "SI" : "power" }),
        },
      })))),
    );
  return made.length ? element("div", { class: "pair" }, ...made) : null;
}

function thinLines(boundaries, colors) {
  return boundaries.filter(({ at }) => at).map(({ at }) => ({
    type: "line", x0: at[shown.axis], x1: at[shown.axis], yref: "paper", y0: 0, y1: 1, layer: "below",
    line: { color: colors.boundary, width: 1, dash: "dot" },
  }));
}

function routerSection({ router, rows, boundaries }) {
  const layers = Math.max(...router.map(({ loads }) => loads.length));
  const start = () => router[0].edges[shown.axis][0];
  let layer = 0;
  const most = overProgress(plot("router-most-plot", "medium", (colors) => ({
    data: router.map((phase) => heat(phase, phase.loads.map((experts) => busiest(experts)), {
      colorscale: colors.most, zmin: 1, zmax: Math.max(2, ...router.flatMap(({ loads }) => loads.map((experts) => Math.max(...busiest(experts))))),
    }, "layer")),
    layout: heatLayout(colors, rows, boundaries, start(), "layer"),
  })));
  const detail = overProgress(plot("router-layer-plot", "medium", (colors) => ({
    data: router.filter(({ loads }) => layer < loads.length).map((phase) =>
      heat(phase, phase.loads[layer].map((loads) => loads.map(share)), { colorscale: colors.load, zmin: 0, zmax: 2 }, "expert")),
    layout: heatLayout(colors, rows, boundaries, start(), "expert"),
  })));
  const chooseLayer = picker("router-layer", "Every expert of mixture layer", Array.from({ length: layers }, (_, index) => String(index)), (chosen) => {
    layer = chosen;
    redraw((box) => box.id === "router-layer-plot");
  });
  return section(
    "router", "Router load",
    "In units of an even share: 1 is as many tokens as the average expert gets, 0 an expert that gets none.",
    element(
      "div", { class: "pair" },
      figure("Busiest expert of each layer", "", most),
      element("figure", {}, element("figcaption", {}, chooseLayer), detail),
    ),
  );
}

const share = (load) => (load === null ? null : load / 100);
const busiest = (experts) => experts[0].map((_, moment) => Math.max(...experts.map((loads) => share(loads[moment]) ?? 0)));

function heat(phase, values, coloring, what) {
  return {
    type: "heatmap", x: phase.edges[shown.axis], y: values.map((_, index) => index), z: values, ...coloring,
    colorbar: { thickness: 10, outlinewidth: 0, len: 1 }, hovertemplate: `${what} %{y}: %{z:.2f}<extra></extra>`, xgap: 0, ygap: 1,
  };
}

function heatLayout(colors, rows, boundaries, start, title) {
  return {
    shapes: thinLines(boundaries, colors).map((line) => ({ ...line, layer: "above" })),
    margin: { l: 44, r: 8, t: 8, b: 38 },
    xaxis: { ...progress(colors, lastOf(rows[shown.axis]), start), showgrid: false },
    yaxis: scale(colors, { title, showgrid: false, autorange: "reversed", nticks: 9 }),
  };
}

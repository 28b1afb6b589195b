// What else changed over the run, as a stack of panels that share the axis, ticks and plot area of the loss plot.

const PANEL_TITLE = 24; // pixels; the height of the panels is in style.css
const STACK = { t: 8, b: 44 };

function measurePanels({ rows, bands, lr }) {
  const hasMemory = bands.some(({ memory }) => memory);
  return [
    lr && { key: "lr", title: "Learning rate", note: lr.logged.length ? `as logged in ${lr.logged.join(", ")}` : "of the schedule, every step" },
    rows.grad_norm && { key: "grad_norm", title: "Gradient norm", note: "before clipping" },
    rows.tokens_per_second && { key: "tokens_per_second", title: "Throughput", note: "tokens per second" },
    rows.mfu && { key: "mfu", title: "MFU", note: "share of the device's peak" },
    hasMemory && { key: "memory", title: "Peak memory", note: "of the process, growth included" },
  ].filter(Boolean);
}

function measurePlot(data) {
  const panels = measurePanels(data);
  if (!panels.length) return null;
  const words = `Over the run: ${panels.map(({ title }) => title.toLowerCase()).join(", ")}.`;
  const box = overProgress(plot("measure-plot", "stack", (colors, width) => stackedPlot(data, panels, colors, width), words));
  box.style.setProperty("--panels", panels.length);
  return box;
}

function stackedPlot(data, panels, colors, width) {
  const height = boxHeight("measure-plot") - STACK.t - STACK.b;
  const panelHeight = height / panels.length;
  const area = plotArea(width);
  const domains = panels.map((_, index) => {
    const top = height - index * panelHeight - PANEL_TITLE;
    return [(top - panelHeight + PANEL_TITLE) / height, top / height];
  });
  const axes = Object.fromEntries(panels.map(({ key }, index) => [
    index ? `yaxis${index + 1}` : "yaxis",
    {
      ...scale(colors, { rangemode: "tozero", nticks: 4, tickformat: { lr: "~g", mfu: ".0%" }[key] ?? "~s", ticksuffix: key === "memory" ? "B" : "" }),
      domain: domains[index], automargin: false, fixedrange: true,
    },
  ]));
  return {
    data: panels.flatMap(({ key, title }, index) => panelTraces(data, key, title, colors, index ? `y${index + 1}` : "y")),
    layout: {
      margin: { ...area, ...STACK },
      shapes: [...bandShapes(data.bands, colors, domains), ...thinLines(data.boundaries, colors)],
      annotations: panels.map(({ title, note }, index) => ({
        xref: "paper", x: 0, xanchor: "left", xshift: -4, yref: "paper", y: domains[index][1], yanchor: "bottom", showarrow: false,
        text: `<b>${title}</b>  ${plain(note)}`, font: { size: 12, color: colors.text },
      })),
      xaxis: { ...progress(colors, lastOf(data.rows[shown.axis])), automargin: false, anchor: panels.length > 1 ? `y${panels.length}` : "y" },
      ...axes,
      hovermode: "x unified",
      hoversubplots: "axis",
    },
  };
}

function panelTraces({ rows, bands, lr }, key, title, colors, yaxis) {
  const axis = shown.axis;
  const line = { color: colors.hues[key], width: 1.4 };
  const name = title.toLowerCase();
  if (key === "memory") return [{ ...steppedValues(bands, ({ memory }) => memory), name, yaxis, mode: "lines", line, hovertemplate: "%{y:.3~s}B" }];
  if (key !== "lr") return [{ x: rows[axis], y: rows[key], name, yaxis, mode: "lines", line, hovertemplate: key === "mfu" ? "%{y:.1%}" : "%{y:.4~s}" }];
  return [
    { x: lr[axis], y: lr.lr, yaxis, mode: "lines", line, hoverinfo: "skip" },
    // The curve has few points; this one answers wherever a step was logged.
    { x: rows[axis], y: rows[axis].map((at) => valueAt(lr[axis], lr.lr, at)), name, yaxis, mode: "lines", line: { ...line, width: 0 }, hovertemplate: "%{y:.3~g}" },
  ];
}

// The value of a line through points with ascending x.
function valueAt(xs, ys, x) {
  let low = 0;
  let high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle;
  }
  const span = xs[high] - xs[low];
  return span > 0 ? ys[low] + (ys[high] - ys[low]) * Math.min(1, Math.max(0, (x - xs[low]) / span)) : ys[high];
}

// Plots: each is a box and a function that builds its traces and layout for the current theme and axis.

const AXES = { step: "step", tokens: "tokens", flops: "FLOPs", seconds: "seconds" };
const shown = { axis: "step", scale: "log" };
const plots = [];
let library = null;

function plot(id, size, build, description = null) {
  const box = element("div", { id, class: `plot plot-${size}`, role: description ? "img" : null, "aria-label": description });
  plots.push({ box, build, done: false });
  return box;
}

function draw(entry) {
  if (!library) return;
  const width = entry.box.clientWidth;
  if (!width) return;
  const { data, layout } = entry.build(theme(), width);
  library.react(entry.box, data, { ...common(theme()), ...layout, width, height: entry.box.clientHeight }, {
    displayModeBar: false,
  });
  if (!entry.done && entry.box.id === "loss-plot") entry.box.on("plotly_relayout", () => renewTicks(entry.box));
  entry.done = true;
}

const boxHeight = (id) => document.getElementById(id).clientHeight;

function redraw(only = () => true) {
  showHues();
  for (const entry of plots) if (entry.done && only(entry.box)) draw(entry);
}

function common(colors) {
  return {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colors.muted },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 56, r: 14, t: 12, b: 44 },
    hoverlabel: { bgcolor: colors.surface, bordercolor: colors.boundary, font: { color: colors.text } },
    showlegend: false,
  };
}

function scale(colors, settings = {}) {
  return {
    gridcolor: colors.grid,
    linecolor: colors.grid,
    zeroline: false,
    automargin: true,
    tickcolor: colors.grid,
    ...settings,
    title: { text: settings.title ?? "", font: { size: 12, color: colors.muted }, standoff: 8 },
  };
}

function progress(colors, end, start = 0) {
  const title = AXES[shown.axis];
  const exponents = shown.axis === "tokens" || shown.axis === "flops" ? { tickformat: "~s" } : {};
  return scale(colors, { title, ...exponents, range: [start, end + 0.01 * (end - start)] });
}

// Plotly interprets some HTML tags in text; escaping shows them literally.
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

const ruler = document.createElement("canvas").getContext("2d");

function textWidth(text) {
  ruler.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(text).width;
}

const count = (value) => (value === null || value === undefined ? "?" : value.toLocaleString("en"));

// The margins beside every plot over the run, the same so that equal steps stand above one another.
function plotArea(width) {
  return width < 560 ? { l: 52, r: 10 } : { l: 64, r: 18 };
}

function translucent(color, opacity) {
  return `${color}${Math.round(255 * opacity).toString(16).padStart(2, "0")}`;
}

// A tint behind every second phase, over the whole height or over each of `domains`.
function bandShapes(bands, colors, domains = [[0, 1]]) {
  return bands.flatMap(({ start, end }, index) => domains.map(([y0, y1]) => ({
    type: "rect", x0: start[shown.axis], x1: end[shown.axis], yref: "paper", y0, y1, layer: "below", line: { width: 0 },
    fillcolor: index % 2 ? colors.bandOdd : colors.bandEven,
  })));
}

// Labels above the plot at their x. Each mark has `words`, the fullest first; all marks use the fullest that fits into
// few rows, and numbers where none does.
function placeLabels(marks, end, width, area, colors) {
  const room = width - area.l - area.r;
  const place = (texts) => {
    const ends = [];
    const places = marks.map(({ x }, index) => {
      const at = (x / (end * 1.01)) * room;
      const size = textWidth(texts[index]) + 16;
      const isRight = at + size > room + area.r;
      const left = isRight ? at - size : at;
      let row = ends.findIndex((taken) => taken <= left);
      if (row < 0) row = ends.push(0) - 1;
      ends[row] = left + size;
      return { row, isRight, isOutside: left < -4 };
    });
    return { texts, places, rows: ends.length, fits: !places.some(({ isOutside }) => isOutside) };
  };
  const kinds = marks[0]?.words.length ?? 0;
  const candidates = [
    ...Array.from({ length: kinds }, (_, kind) => [2, place(marks.map(({ words }) => words[kind]))]),
    [Infinity, place(marks.map((_, index) => String(index + 1)))],
  ];
  const [, { texts, places, rows }] = candidates.find(([most, one]) => one.rows <= most && (one.fits || most === Infinity));
  const annotations = places.map(({ row, isRight }, index) => ({
    x: marks[index].x, xanchor: isRight ? "right" : "left", yref: "paper", y: 1, yanchor: "bottom", yshift: 17 * row + 1,
    text: plain(texts[index]), showarrow: false, borderpad: 2, font: { size: 12, color: colors[marks[index].color ?? "text"] },
  }));
  return { annotations, top: 14 + 17 * rows };
}

// Vertical lines with labels above the plot.
function markLines(marks, end, width, colors) {
  const labels = placeLabels(marks.map(({ x, label }) => ({ x, words: [label] })), end, width, { l: 56, r: 14 }, colors);
  const shapes = marks.map(({ x }) => ({
    type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: colors.boundary, width: 1.2, dash: "dash" },
  }));
  return { ...labels, shapes };
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let index = 0; index < bytes.length; index += 1) bytes[index] = letters.charCodeAt(index);
  return bytes;
}

async function unpackLibrary() {
  const bytes = fromBase64(document.getElementById("plotly").textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const code = document.createElement("script");
  code.textContent = await new Response(stream).text();
  document.head.append(code);
  library = window.Plotly;
}

const pause = () => new Promise((resolve) => setTimeout(resolve));

// Draw the visible plots first, then the rest one at a time so that scrolling stays responsive.
async function drawAll() {
  const isVisible = ({ box }) => box.getBoundingClientRect().top < innerHeight;
  for (const entry of plots.filter(isVisible)) draw(entry);
  performance.mark("first-plots");
  for (const entry of plots) {
    if (entry.done) continue;
    await pause();
    draw(entry);
  }
  performance.mark("all-plots");
  document.documentElement.dataset.drawn = "all";
}

function followSurroundings() {
  showHues();
  darkScheme.addEventListener("change", () => redraw());
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => printing || redraw((box) => box.clientWidth !== box.layout?.width), 120);
  });
  addEventListener("beforeprint", () => {
    printing = true;
    document.body.classList.add("printing");
    showHues();
    plots.forEach(draw);
  });
  addEventListener("afterprint", () => {
    printing = false;
    document.body.classList.remove("printing");
    redraw();
  });
}

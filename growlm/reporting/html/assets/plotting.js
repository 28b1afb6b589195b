// Plots: each is a box and a function that builds its traces and layout for the current theme and axis.

const AXES = { step: "step", tokens: "tokens", flops: "FLOPs", seconds: "seconds" };
const shown = { axis: "step", scale: "log" };
const plots = [];
let library = null;

function plot(id, size, build) {
  const box = element("div", { id, class: `plot plot-${size}` });
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

// Vertical lines with labels above the plot, in as many rows as avoid overlaps; numbers if space is short.
function markLines(marks, end, width, colors) {
  const room = width - 80;
  const isNarrow = width < 620 || marks.length > 8;
  const ends = [];
  const shapes = [];
  const annotations = [];
  marks.forEach(({ x, label }, index) => {
    const text = isNarrow ? String(index + 1) : label;
    const at = (x / (end * 1.01)) * room;
    const size = textWidth(text) + 14;
    const isRight = at + size > room;
    const left = isRight ? at - size : at;
    let row = ends.findIndex((taken) => taken <= left);
    if (row < 0) row = ends.push(0) - 1;
    ends[row] = left + size;
    annotations.push({
      x, xanchor: isRight ? "right" : "left", yref: "paper", y: 1, yanchor: "bottom", yshift: 17 * row + 1,
      text: plain(text), showarrow: false, font: { size: 12, color: colors.text }, borderpad: 2,
    });
    shapes.push({
      type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1,
      line: { color: colors.boundary, width: 1.2, dash: "dash" },
    });
  });
  return { shapes, annotations, top: 14 + 17 * ends.length };
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
  darkScheme.addEventListener("change", () => redraw());
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => printing || redraw((box) => box.clientWidth !== box.layout?.width), 120);
  });
  addEventListener("beforeprint", () => {
    printing = true;
    document.body.classList.add("printing");
    plots.forEach(draw);
  });
  addEventListener("afterprint", () => {
    printing = false;
    document.body.classList.remove("printing");
    redraw();
  });
}

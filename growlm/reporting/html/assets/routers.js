// The routers of a run: how evenly they spread tokens over experts, and where tokens went when experts grew.

// Loads are compared with an even share on a logarithmic scale whose ends are the same in all reports.
const LOAD = { dead: -2.6, unused: -2.15, low: -2, high: 2 };
const LOAD_TICKS = [[-2.38, "none"], [-2, "\u2264 \u00bc"], [-1, "\u00bd"], [0, "1"], [1, "2"], [2, "\u2265 4"]];
const NARROW = 260; // pixels below which a matrix has a color bar without a title
const CELL = { smallest: 26, largest: 44, text: 30 };

const share = (load) => (load === null ? null : load / 100);
const busiest = (experts) => experts[0].map((_, moment) => Math.max(...experts.map((loads) => share(loads[moment]) ?? 0)));
const formatLoad = (load) => (load === 0 ? "0" : load.toFixed(2));

function routerSection({ router, routerTable, rows, boundaries }) {
  const layers = Math.max(...router.map(({ loads }) => loads.length));
  const start = () => router[0].edges[shown.axis][0];
  let layer = 0;
  const most = overProgress(plot("router-most-plot", "medium", (colors) => ({
    data: router.map((phase, index) => loadMap(phase, index === 0, phase.loads.map(busiest), "mixture layer", "busiest expert", colors)),
    layout: loadLayout(colors, rows, boundaries, start(), "mixture layer", layers),
  }), "Load of the busiest expert of each mixture layer over the run; the table below has the numbers of its end."));
  const detail = overProgress(plot("router-layer-plot", "medium", (colors) => {
    const phases = router.filter(({ loads }) => layer < loads.length);
    return {
      data: phases.map((phase, index) => loadMap(phase, index === 0, phase.loads[layer].map((loads) => loads.map(share)), "expert", "load", colors)),
      layout: loadLayout(colors, rows, boundaries, start(), "expert", Math.max(...phases.map(({ experts }) => experts))),
    };
  }, "Load of every expert of one mixture layer over the run; the table below has the numbers of its end."));
  const chooseLayer = picker("router-layer", "Every expert of mixture layer", Array.from({ length: layers }, (_, index) => String(index)), (chosen) => {
    layer = chosen;
    redraw((box) => box.id === "router-layer-plot");
  });
  return section(
    "router", "Router load",
    "Load: the tokens that an expert gets, divided by an even share of them. 1 is even; none is less than 0.5\u00a0% of it. The colors mean the same in every report; loads beyond \u00bc and 4 have the color of the end, and hovering tells them.",
    element(
      "div", { class: "pair" },
      figure("Busiest expert of each layer", "", most),
      element("figure", {}, element("figcaption", {}, chooseLayer), detail),
    ),
    disclosed("Loads at the end of each phase as a table", table("router-table", routerTable, "Table of router loads")),
  );
}

function disclosed(summary, ...children) {
  return element("details", {}, element("summary", {}, summary), ...children);
}

// A load of zero is below the scale, in a color of its own.
const loadHeight = (load) => (load === null ? null : load <= 0 ? LOAD.dead : Math.min(LOAD.high, Math.max(LOAD.low, Math.log2(load))));

function loadColors(colors) {
  const span = LOAD.high - LOAD.dead;
  const edge = (LOAD.unused - LOAD.dead) / span;
  const stops = [-2, -0.8, 0, 0.8, 2].map((height, index) => [(height - LOAD.dead) / span, colors.load[index]]);
  return [[0, colors.unused], [edge, colors.unused], [edge, colors.load[0]], ...stops];
}

function loadMap(phase, showscale, values, what, name, colors) {
  return {
    type: "heatmap", x: phase.edges[shown.axis], y: values.map((_, index) => index), z: values.map((line) => line.map(loadHeight)),
    text: values.map((line) => line.map((load) => (load === null ? "unknown" : formatLoad(load)))),
    colorscale: loadColors(colors), zmin: LOAD.dead, zmax: LOAD.high, xgap: 0, ygap: 1, showscale,
    colorbar: {
      ...colorBar(colors, "load / even share"), tickvals: LOAD_TICKS.map(([at]) => at), ticktext: LOAD_TICKS.map(([, words]) => words),
    },
    hovertemplate: `${plain(phase.phase)}, ${what} %{y}<br>${name}: %{text} of an even share<extra></extra>`,
  };
}

function colorBar(colors, title) {
  return {
    thickness: 10, outlinewidth: 0, len: 1, xpad: 6, ypad: 0, tickfont: { size: 11, color: colors.muted },
    title: { text: title, side: "right", font: { size: 12, color: colors.muted } },
  };
}

function loadLayout(colors, rows, boundaries, start, title, count) {
  return {
    shapes: thinLines(boundaries, colors).map((line) => ({ ...line, layer: "above" })),
    margin: { l: 44, r: 8, t: 8, b: 38 },
    xaxis: { ...progress(colors, lastOf(rows[shown.axis]), start), showgrid: false },
    yaxis: indexScale(colors, title, count, boxHeight("router-most-plot") - 46),
  };
}

// Whole numbers from the top: layers or experts.
function indexScale(colors, title, count, pixels = Infinity) {
  const few = count <= 16 && pixels >= 14 * count ? { tickmode: "linear", dtick: 1 } : { nticks: 9 };
  return scale(colors, { title, showgrid: false, range: [count - 0.5, -0.5], ...few });
}

function movementSection({ movement }) {
  const layers = [...new Set(movement.growths.flatMap(({ layers: all }) => all.map(({ layer }) => layer)))].sort((one, two) => one - two);
  let at = layers[0];
  const figures = movement.growths.map((growth, index) => {
    const note = element("small");
    const describe = () => { note.textContent = ` ${layerNote(growth, at)}`; };
    const box = plot(`movement-${index}`, growth.old > 1 ? "medium" : "strip", (colors, width) => {
      describe();
      return movementPlot(growth, at, colors, width, boxHeight(`movement-${index}`));
    }, `Where the tokens of each old expert went in the growth ${growth.name}; the table below has the numbers.`);
    describe();
    return element("figure", {}, element("figcaption", {}, growth.name, note), box);
  });
  const chooseLayer = picker("movement-layer", "layer of the grown model", layers.map(String), (chosen) => {
    at = layers[chosen];
    redraw((box) => box.id.startsWith("movement-"));
  });
  return section(
    "movement", "Tokens between experts",
    "Where each growth sent the tokens of the probe: of the choices of an old expert, the share that went to each new one, in percent. A growth that keeps the routing leaves every token with its expert, or with copies of it. An empty row is an expert that the probe did not use.",
    element("div", { class: "controls" }, chooseLayer),
    element("div", { class: "triple" }, ...figures),
    disclosed("The same as a table", table("movement-table", movement.table, "Table of tokens between experts")),
  );
}

function layerNote({ grew, layers }, at) {
  const layer = layers.find((one) => one.layer === at);
  if (!layer) return `${grew}; layer ${at} has no experts here`;
  if (layer.oldLayer === null) return `${grew}; layer ${at} was inserted`;
  return `${grew}; ${layer.hasExperts ? "from" : "from the dense"} layer ${layer.oldLayer}`;
}

function movementPlot(growth, at, colors, width, plotHeight) {
  const layer = growth.layers.find((one) => one.layer === at);
  const rows = layer?.hasExperts ? growth.old : 1;
  const used = new Set((layer?.shares ?? []).map(([from]) => from));
  const values = Array.from({ length: rows }, (_, index) => Array(growth.new).fill(used.has(index) ? 0 : null));
  (layer?.shares ?? []).forEach(([from, to, part]) => { values[from][to] = part; });
  const margin = { l: 52, r: 8, t: 8, b: 40 };
  const height = plotHeight - margin.t - margin.b;
  const cell = Math.min(CELL.largest, height / rows);
  const isNarrow = width < NARROW;
  const column = (width - margin.l - margin.r - (growth.old > 1 ? (isNarrow ? 40 : 60) : 0)) / growth.new;
  const hasText = layer && cell >= 16 && column >= CELL.smallest;
  const source = layer?.oldLayer === null ? "inserted layer" : "dense layer";
  const names = values.map((_, index) => (layer?.hasExperts ? `expert ${index}` : source));
  return {
    data: layer ? [{
      type: "heatmap", x: values[0].map((_, index) => index), y: values.map((_, index) => index), z: values,
      colorscale: colors.most, zmin: 0, zmax: 1, xgap: 1, ygap: 1, showscale: growth.old > 1,
      text: values.map((line) => line.map((part) => (part ? `${Math.round(100 * part)}` : ""))),
      texttemplate: hasText ? "%{text}" : "", textfont: { size: column >= CELL.text ? 11 : 10 },
      customdata: values.map((line, index) => line.map(() => names[index])),
      colorbar: { ...colorBar(colors, isNarrow ? "" : "share of the old expert"), thickness: isNarrow ? 6 : 10, tickvals: [0, 0.5, 1], tickformat: ".0%" },
      hovertemplate: "%{customdata} \u2192 expert %{x}: %{z:.1%}<extra></extra>",
    }] : [],
    layout: {
      margin,
      xaxis: { ...scale(colors, { title: "new expert", showgrid: false, tickangle: 0, ...(growth.new <= 8 ? { dtick: 1 } : { nticks: isNarrow ? 4 : 9 }) }), range: [-0.5, growth.new - 0.5] },
      yaxis: {
        ...indexScale(colors, layer?.hasExperts ? "old expert" : "", rows, height), domain: [1 - Math.min(1, (cell * rows) / height), 1], automargin: false,
        ...(layer?.hasExperts ? {} : { tickmode: "array", tickvals: [0], ticktext: [layer?.oldLayer === null ? "new" : "dense"] }),
      },
    },
  };
}

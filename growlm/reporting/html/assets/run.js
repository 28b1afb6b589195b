// The page of one run.

function runPage(data) {
  const parts = [
    section(
      "loss", "Loss", null,
      element("div", { class: "controls" }, axisChoice(), scaleChoice()),
      plot("loss-plot", "hero", (colors, width) => lossPlot(data, colors, width), describeLoss(data)),
      lossKey(data),
      phaseList(data),
      element(
        "p", { class: "hint" },
        `Above the loss, below it the parameters; each band is a phase, named where it starts with what grew. Smoothed: the mean of a logged step and ${data.smoothedOver} on either side. `,
        "The switch sets the axis of every plot over the run. Drag to zoom, double-click to see all again.",
      ),
    ),
  ];
  if (data.boundaries.length) {
    parts.push(section(
      "boundaries", "Boundaries",
      "Jump: how far a growth moved the loss on the probe, a few held-out sequences that stay the same during the run, in fp32.",
      boundaryKey(),
      ...data.boundaries.map(boundaryCard),
    ));
  }
  parts.push(section("phases", "Phases", null, table("phase-table", data.phases, "Table of phases"), evaluationTable(data)));
  if (data.movement) parts.push(movementSection(data));
  if (data.router.length) parts.push(routerSection(data));
  const measures = measurePlot(data);
  if (measures) parts.push(section("throughput", "Throughput and optimization", null, measures));
  if (data.samples.length) {
    const samples = data.samples.map(({ phase, text }) => sample(phase, text));
    parts.push(section("samples", "Samples", "What the model of each phase wrote after its training.", element("div", { class: "samples" }, ...samples)));
  }
  if (data.warnings.length) parts.push(section("warnings", "Warnings", null, messageList(data.warnings)));
  parts.push(section("commands", "Commands", null, ...commandList(data.commands)));
  parts.push(section("config", "Config", "config.yaml, everything resolved.", element("pre", { class: "config", tabindex: "0", role: "region", "aria-label": "config.yaml" }, data.config)));
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
  return figure("Evaluation sets", "loss before the first step and after the last; bits per byte", table("evaluation-table", evaluation, "Table of evaluation sets"));
}

// The phases in words: how many parameters from which step, and what grew there.
function phaseList(data) {
  const marks = growthMarks(data);
  const items = marks.map(({ name, grew, grows }, index) => {
    const band = data.bands.find((one) => one.name === name);
    const boundary = data.boundaries.find(({ to }) => to === name);
    const from = !grows ? "from step 1" : boundary?.at ? `after step ${count(boundary.at.step)}` : "";
    const active = band && band.active !== band.total ? `, ${band.activeText} active per token` : "";
    const size = band ? `${band.totalText} parameters${active}` : boundary?.planned ? `would have ${boundary.planned} parameters` : "";
    const words = [from, size, grows && boundary ? `jump\u00a0${boundary.jump}` : ""].filter(Boolean).join("; ");
    return element(
      "li", {},
      element("b", {}, String(index + 1)), element("span", { class: "name" }, `${name}${grew ? `: ${grew}` : ""}`), `, ${words} `,
      grows && boundary ? status(boundary.verdict.status, boundary.verdict.text) : null,
    );
  });
  return items.length ? element("ol", { class: "marks" }, ...items) : null;
}

function thinLines(boundaries, colors) {
  return boundaries.filter(({ at }) => at).map(({ at }) => ({
    type: "line", x0: at[shown.axis], x1: at[shown.axis], yref: "paper", y0: 0, y1: 1, layer: "below",
    line: { color: colors.boundary, width: 1, dash: "dot" },
  }));
}

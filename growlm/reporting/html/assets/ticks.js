// Ticks of a logarithmic axis: as many round numbers as fit without overlapping.

const SMALLEST_GAP = 22; // pixels between labels
const STEPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].map((step) => Array.from({ length: Math.round(9 / step) }, (_, index) => 1 + index * step));
const MULTIPLES = [...STEPS, [1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]];

function logTicks([low, high], pixels) {
  const unit = pixels / (high - low);
  let visible = [];
  for (const multiples of MULTIPLES) {
    visible = [];
    for (let decade = Math.floor(low); decade <= Math.ceil(high); decade += 1) {
      visible.push(...multiples.map((multiple) => decade + Math.log10(multiple)).filter((at) => at >= low && at <= high));
    }
    const gaps = visible.slice(1).map((at, index) => (at - visible[index]) * unit);
    if (Math.min(...gaps) >= SMALLEST_GAP) break;
  }
  return visible.map((at) => Number((10 ** at).toPrecision(4)));
}

function lossScale(colors, title, values, pixels) {
  if (shown.scale !== "log") return scale(colors, { title });
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return scale(colors, { title });
  const [low, high] = [Math.log10(smallest(positive)), Math.log10(largest(positive))];
  const edge = 0.04 * (high - low) + 0.004;
  const range = [low - edge, high + edge];
  return scale(colors, { title, type: "log", range, tickvals: logTicks(range, pixels), tickformat: "~g" });
}

// Recompute the ticks after zooming, which changes how many fit.
function renewTicks(box) {
  const axis = box.layout.yaxis;
  if (axis.type !== "log") return;
  const { t: top, b: bottom } = box.layout.margin;
  const [from, to] = axis.domain ?? [0, 1];
  const ticks = logTicks(axis.range, (box.clientHeight - top - bottom) * (to - from));
  if (ticks.join() !== axis.tickvals.join()) library.relayout(box, { "yaxis.tickvals": ticks });
}

const smallest = (values) => values.reduce((one, two) => Math.min(one, two));
const largest = (values) => values.reduce((one, two) => Math.max(one, two));

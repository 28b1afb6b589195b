// Final losses over the values of the swept settings: a line for one, a grid for two, a panel for each of more.

function finalLossSection(data, chosen, look) {
  const found = data.finalLosses;
  const repeated = found.means.some(({ count: runs }) => runs > 1);
  const over = data.dials.some(({ key }) => key === "seed") ? "seeds" : "runs of the same values";
  const averaged = repeated ? ` Means over ${over}; the table has how many, the lowest and the highest.` : "";
  const holder = found.isGrid ? gridBox(found) : panelBoxes(data, found, chosen, look);
  const hints = {
    grid: `Validation loss at the end of the finished runs, for each pair of values; the lowest is outlined.${averaged}`,
    line: `Validation loss at the end of each finished run. ${repeated ? `The line joins the means over ${over}.` : ""}`,
    panels: "Validation loss at the end of each finished run, over one setting at a time: every point is a run, and the line joins the means over all runs with that value.",
  };
  const kind = found.isGrid ? "grid" : found.dials.length === 1 ? "line" : "panels";
  return section(
    "dials", `Final loss by ${found.dials.map(({ name }) => name).join(", ")}`, hints[kind], holder,
    disclosed("The same as a table", table("final-table", found.table, "Table of final losses")),
  );
}

function panelBoxes(data, found, chosen, look) {
  const losses = found.points.map(({ loss }) => loss);
  const edge = 0.08 * (largest(losses) - smallest(losses)) || 0.01 * largest(losses);
  const range = [smallest(losses) - edge, largest(losses) + edge];
  const boxes = found.dials.map((dial, index) => {
    const words = `Final validation loss over ${dial.name}; the table below has the numbers.`;
    const box = plot(index ? `dial-plot-${index}` : "dial-plot", "medium", (colors) => finalLossPlot(data, found, index, range, look, colors), words);
    box.dataset.legend = "runs";
    return box;
  });
  return boxes.length === 1 ? boxes[0] : element("div", { class: "pair" }, ...boxes.map((box, index) => figure(found.dials[index].name, "", box)));
}

function finalLossPlot(data, found, index, range, look, colors) {
  const dial = found.dials[index];
  const isWords = dial.scale === "category";
  const place = (at) => (isWords ? at : dial.values[at].number);
  const places = dial.values.map((_, at) => place(at));
  const groups = dial.values.map((_, at) => found.points.filter((point) => point.at[index] === at).map(({ loss }) => loss));
  const means = groups.map((losses) => losses.reduce((sum, loss) => sum + loss, 0) / losses.length);
  const isRepeated = groups.some((losses) => losses.length > 1);
  const looks = found.points.map(({ run }) => look(run));
  return {
    data: [
      {
        x: places, y: means, name: "mean", mode: isWords ? "markers" : "lines", line: { color: colors.boundary, width: 1.6 },
        marker: { symbol: "line-ew", size: 26, line: { color: colors.boundary, width: isRepeated ? 2 : 0 } },
        text: groups.map((losses, at) => `${plain(dial.name)} ${plain(dial.values[at].text)}<br>mean of ${losses.length} run${losses.length > 1 ? "s" : ""}`),
        hovertemplate: "%{text}: %{y:.4f}<extra></extra>",
      },
      {
        x: found.points.map(({ at }) => place(at[index])), y: found.points.map(({ loss }) => loss), name: "run", mode: "markers",
        marker: { size: 10, color: looks.map(({ color }) => color), line: { color: colors.surface, width: 1 } },
        text: found.points.map(({ run }) => plain(caption(data, data.runs[run]))), hovertemplate: "%{text}<br>%{y:.4f}<extra></extra>",
      },
    ],
    layout: {
      margin: { l: 62, r: 20, t: 10, b: 46 },
      xaxis: finalLossAxis(dial, places, colors),
      yaxis: { ...scale(colors, { title: "validation loss", nticks: 6 }), range },
    },
  };
}

function finalLossAxis(dial, places, colors) {
  const ticks = { tickmode: "array", tickvals: places, ticktext: dial.values.map(({ text }) => plain(dial.key === KIND_KEY ? settingWords(dial, text) : text)) };
  const made = scale(colors, { title: plain(dial.key), ...ticks });
  if (dial.scale === "category") return { ...made, range: [-0.5, places.length - 0.5], showgrid: false };
  const at = dial.scale === "log" ? places.map(Math.log10) : places;
  const edge = 0.06 * (largest(at) - smallest(at)) || 1;
  return { ...made, type: dial.scale, range: [smallest(at) - edge, largest(at) + edge] };
}

function gridBox(found) {
  const words = `Final validation loss by ${found.dials.map(({ name }) => name).join(" and ")}; the table below has the numbers.`;
  const box = plot("dial-plot", "grid", (colors, width) => gridPlot(found, colors, width), words);
  box.style.setProperty("--rows", found.dials[0].values.length);
  return box;
}

function gridPlot({ dials: [down, across], means }, colors, width) {
  const cells = (make) => down.values.map((_, row) => across.values.map((__, column) => {
    const mean = means.find(({ at }) => at[0] === row && at[1] === column);
    return mean ? make(mean) : null;
  }));
  const lowest = means.reduce((one, two) => (two.loss < one.loss ? two : one));
  const column = (width - 150) / across.values.length;
  const isNarrow = column < 58;
  const words = ({ loss, count: runs }) => `${loss.toFixed(isNarrow ? 2 : 4)}${runs > 1 && !isNarrow ? `<br>mean of ${runs}` : ""}`;
  const ticks = (dial) => ({ tickmode: "array", tickvals: dial.values.map((_, at) => at), ticktext: dial.values.map(({ text }) => plain(dial.key === KIND_KEY ? settingWords(dial, text) : text)), showgrid: false });
  return {
    data: [{
      type: "heatmap", x: across.values.map((_, at) => at), y: down.values.map((_, at) => at), z: cells(({ loss }) => loss), xgap: 2, ygap: 2,
      colorscale: colors.most, reversescale: true, text: cells(words).map((line) => line.map((one) => one ?? "")), texttemplate: column < 30 ? "" : "%{text}", textfont: { size: 12 }, hoverongaps: false,
      colorbar: { ...colorBar(colors, "validation loss"), nticks: 4 },
      customdata: cells(({ at, count: runs }) => plain(`${down.name} ${down.values[at[0]].text}, ${across.name} ${across.values[at[1]].text}: ${runs} run${runs > 1 ? "s" : ""}`)),
      hovertemplate: "%{customdata}<br>%{z:.4f}<extra></extra>",
    }],
    layout: {
      margin: { l: 62, r: 8, t: 10, b: 46 },
      shapes: [{
        type: "rect", x0: lowest.at[1] - 0.5, x1: lowest.at[1] + 0.5, y0: lowest.at[0] - 0.5, y1: lowest.at[0] + 0.5, line: { color: colors.hues.validation, width: 3 },
      }],
      xaxis: scale(colors, { title: plain(across.key), ...ticks(across) }),
      yaxis: scale(colors, { title: plain(down.key), ...ticks(down) }),
    },
  };
}

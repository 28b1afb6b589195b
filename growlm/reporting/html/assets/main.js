// Show text and tables at once, then draw the plots.

const data = JSON.parse(document.getElementById("data").textContent);
const parts = data.kind === "run" ? runPage(data) : comparisonPage(data);
if (data.kind === "run") overProgress(plots.find(({ box }) => box.id === "loss-plot").box);
const footer = element("footer", {}, "Written by growlm.report. This page holds everything it shows and asks the network for nothing.");
document.getElementById("report").replaceChildren(...head(data).filter(Boolean), contents(), ...parts, footer);
followSurroundings();
unpackLibrary().then(drawAll, () => {
  plots.forEach(({ box }) => box.replaceChildren("This plot needs a browser from 2023 or later."));
});

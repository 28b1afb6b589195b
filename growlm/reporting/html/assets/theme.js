// Colors of the plots; those of the page are in style.css. The series colors are based on the Okabe-Ito palette,
// which is distinguishable with color vision deficiencies.

const THEMES = {
  light: {
    text: "#1c2330",
    muted: "#5b6675",
    grid: "#e6e9ee",
    surface: "#ffffff",
    boundary: "#6b7482",
    bad: "#b3261e",
    bandEven: "#f5f7fa",
    bandOdd: "#e9eef4",
    series: ["#0072b2", "#d55e00", "#009e73", "#a8568a", "#b07c00", "#2f9bd6", "#444b57", "#8a6d3b"],
    ramp: ["#440154", "#3b528b", "#21918c", "#4fae55", "#a8a800"],
    hues: {
      training: "#0072b2", validation: "#d55e00", parameters: "#008560", probe: "#6a3d9a", drift: "#8a6d00",
      lr: "#a8568a", grad_norm: "#5a6b2f", tokens_per_second: "#444b57", mfu: "#444b57", memory: "#8a5a3b",
    },
    // Less than an even share, an even share, more than it; and no tokens at all.
    load: ["#1f5fa8", "#8fc1de", "#f4f4f2", "#f2a984", "#a83c14"],
    unused: "#16181d",
    most: [[0, "#f2f6fa"], [0.5, "#6aaed6"], [1, "#08306b"]],
  },
  dark: {
    text: "#e4e8ee",
    muted: "#9aa5b4",
    grid: "#29313c",
    surface: "#181d25",
    boundary: "#8d98a7",
    bad: "#ff9b92",
    bandEven: "#1b212a",
    bandOdd: "#252d38",
    series: ["#56b4e9", "#f0883e", "#3ecf9f", "#dc8fc0", "#e6b422", "#9ecbff", "#c3cbd6", "#c9a66b"],
    ramp: ["#9a7fd6", "#6f9be0", "#35b9ae", "#7fd35f", "#fde725"],
    hues: {
      training: "#56b4e9", validation: "#f0883e", parameters: "#3ecf9f", probe: "#b79cf0", drift: "#e6c74a",
      lr: "#dc8fc0", grad_norm: "#b5c97e", tokens_per_second: "#c3cbd6", mfu: "#c3cbd6", memory: "#d0a383",
    },
    load: ["#7cc0f0", "#35729f", "#2a313b", "#a9552f", "#ffb48f"],
    unused: "#f3f5f8",
    most: [[0, "#1b2430"], [0.5, "#3f86bd"], [1, "#cfe8ff"]],
  },
};

// `hues` says what a color means in the plots of one run; the same thing has the same color in all of them.
const darkScheme = matchMedia("(prefers-color-scheme: dark)");
let printing = false;

function theme() {
  return darkScheme.matches && !printing ? THEMES.dark : THEMES.light;
}

// Give the page's own text the colors that the plots have.
function showHues() {
  const { hues, surface, boundary, bad } = theme();
  const style = document.documentElement.style;
  Object.entries({ ...hues, growth: boundary, failed: bad }).forEach(([name, color]) => style.setProperty(`--hue-${name}`, color));
  style.setProperty("--hue-drift-mean", mix(hues.drift, surface, 0.45));
}

function mix(from, to, part) {
  const channel = (color, at) => parseInt(color.slice(at, at + 2), 16);
  const mixed = [1, 3, 5].map((at) => Math.round(channel(from, at) * (1 - part) + channel(to, at) * part));
  return `#${mixed.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

// Return the color of the `index`-th of `count` ordered values.
function ordered(index, count) {
  const stops = theme().ramp;
  const at = count > 1 ? (index / (count - 1)) * (stops.length - 1) : 0;
  const below = Math.min(Math.floor(at), stops.length - 2);
  return mix(stops[below], stops[below + 1], at - below);
}

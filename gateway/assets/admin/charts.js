// A number over the last minutes, as a small chart.
import { h } from "./dom.js";

const SAMPLES = 120;
const [WIDTH, HEIGHT] = [240, 48];
const SVG = "http://www.w3.org/2000/svg";

function shape(name, className) {
  const node = document.createElementNS(SVG, name);
  node.setAttribute("class", className);
  return node;
}

/** `show` turns a value into text. Returns the chart's element and `push`, which takes the next value. */
export function chart(title, show) {
  const values = [];
  const [area, line] = [shape("path", "chart-area"), shape("path", "chart-line")];
  const svg = shape("svg", "chart");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.append(area, line);
  const now = h("strong.now", {}, "–");
  const most = h("span.most", {}, "");
  const node = h("li.tile", {}, h("span.tile-title", {}, title), now, svg, most);

  function draw() {
    const top = Math.max(...values, 0);
    const x = (n) => WIDTH - ((values.length - 1 - n) * WIDTH) / (SAMPLES - 1);
    const y = (value) => HEIGHT - 1 - (top ? (value / top) * (HEIGHT - 4) : 0);
    const points = values.map((value, n) => `${x(n).toFixed(1)},${y(value).toFixed(1)}`).join("L");
    line.setAttribute("d", values.length ? `M${points}` : "");
    area.setAttribute("d", values.length ? `M${x(0).toFixed(1)},${HEIGHT}L${points}L${WIDTH},${HEIGHT}Z` : "");
    most.textContent = values.length > 1 ? `at most ${show(top)}` : "";
  }

  return {
    node,
    push(value) {
      if (value === null) return;
      values.push(value);
      if (values.length > SAMPLES) values.shift();
      now.textContent = show(value);
      draw();
    },
  };
}

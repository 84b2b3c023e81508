
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const waiting = [...document.querySelectorAll(".chart")].filter((chart) => chart.id in figures);
const charts = [];
const root = document.documentElement;
/* The first chart at once, the others one by one while nothing else is to be done: a page of many opens as quickly. */
function draw() {
  const chart = waiting.shift();
  if (!chart) return;
  const { data, layout } = figures[chart.id];
  figures[chart.id].height = layout.height;
  Plotly.newPlot(chart, data, layout, { displayModeBar: false, responsive: true });
  charts.push(chart);
  if (charts.length === 1) performance.mark("first chart");
  root.dataset.drawn = charts.length;
}
function next() {
  draw();
  if (waiting.length) (window.requestIdleCallback || setTimeout)(next, { timeout: 100 });
}
next();
/* Paper has its own width, and no one can unfold what is printed. */
let unfolded = [];
addEventListener("beforeprint", () => {
  while (waiting.length) draw();
  unfolded = [...document.querySelectorAll("details.printed:not([open])")];
  for (const details of unfolded) details.open = true;
  for (const chart of charts) Plotly.relayout(chart, { width: 660, height: Math.min(820, figures[chart.id].height) });
});
addEventListener("afterprint", () => {
  for (const details of unfolded) details.open = false;
  for (const chart of charts) Plotly.relayout(chart, { width: null, height: figures[chart.id].height, autosize: true });
});

// A chart of a model's past, fed by the server's history and then by the live stream.

import { html, useEffect, useRef } from "./vendor/preact.js";

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const uplot = window.uPlot;

// `series`: {label, column, color, scale?, fill?, stepped?}. `data`: {times, columns}. `marks`: [{time, text}].
export function Chart({ title, series, data, height = 170, unit = "", marks = [] }) {
  const holder = useRef(null), chart = useRef(null), marked = useRef(marks);
  marked.current = marks;
  useEffect(() => {
    const element = holder.current;
    const draw = () => {
      chart.current?.destroy();
      chart.current = new uplot(options(element.clientWidth, height, series, unit, marked), columns(data, series), element);
    };
    draw();
    const resized = new ResizeObserver(() => {
      if (chart.current && Math.abs(chart.current.width - element.clientWidth) > 1)
        chart.current.setSize({ width: element.clientWidth, height });
    });
    resized.observe(element);
    const scheme = new MutationObserver(draw);
    scheme.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return () => { resized.disconnect(); scheme.disconnect(); chart.current?.destroy(); chart.current = null; };
  }, [series, height]);
  useEffect(() => { chart.current?.setData(columns(data, series)); }, [data, data.times.length, data.times.at(-1)]);
  const last = series.map(({ label, column }) => `${label} ${data.columns[column]?.at(-1) ?? "unknown"}`).join(", ");
  return html`<figure class="chart">
    <figcaption>${title}</figcaption>
    <div ref=${holder} role="img" aria-label="${title}: now ${last}"></div>
  </figure>`;
}

const columns = (data, series) => [data.times, ...series.map(({ column }) => data.columns[column] ?? [])];

function options(width, height, series, unit, marked) {
  const axis = { stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  return {
    width,
    height,
    cursor: { y: false, points: { size: 6 } },
    legend: { live: true },
    scales: { x: { time: true }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max(1, (high ?? 0) * 1.1)] } },
    axes: [{ ...axis, size: 30, space: 76, values: timeLabels }, { ...axis, size: 52, values: (_, ticks) => ticks.map((tick) => `${Number(tick.toPrecision(3))}${unit}`) }],
    series: [
      { value: (_, time) => (time === null ? "–" : new Date(time * 1000).toLocaleTimeString("en-GB")) },
      ...series.map((each) => ({
        label: each.label,
        stroke: color(each.color),
        fill: each.fill ? `${color(each.color)}22` : undefined,
        width: 1.75,
        spanGaps: true,
        points: { show: false },
        paths: each.stepped ? uplot.paths.stepped({ align: 1 }) : undefined,
        value: (_, value) => (value === null || value === undefined ? "–" : `${Number(value.toPrecision(3))}${unit}`),
      })),
    ],
    hooks: { draw: [(u) => drawMarks(u, marked.current)] },
  };
}

// Hours and minutes; with seconds where the ticks are closer than a minute.
const timeLabels = (_, ticks, __, ___, step) => ticks.map((time) => new Date(time * 1000).toLocaleTimeString("en-GB").slice(0, step < 60 ? 8 : 5));

// A mark at the top for each decision that changed the number of workers.
function drawMarks(u, marks) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.fillStyle = color("--accent");
  for (const { time } of marks) {
    const x = u.valToPos(time, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x - 4, bbox.top);
    ctx.lineTo(x + 4, bbox.top);
    ctx.lineTo(x, bbox.top + 7);
    ctx.fill();
  }
  ctx.restore();
}

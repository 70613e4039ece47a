// A chart of a model's past, fed by the server's history and then by the live stream.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { clock, number } from "./format.js";

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const uplot = window.uPlot;
const DASHES = { dashed: [6, 4], dotted: [2, 3] };
// The legend shows the newest value of so many points: in some seconds nothing starts.
const RECENT_POINTS = 10;
// Distances of the labels of an axis with whole numbers.
const COUNTS = [0, 1, 2, 3, 4, 5, 6].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));

// `series`: {label, column, color, fill?, stepped?, line?}, where `line` is solid, dashed or dotted. `data`: {times,
// columns}. `marks`: [{time}]. `span`: seconds of the whole chart; without it the chart has the length of its data.
// `limit`: {label, value} is a line across, where it is among the values. `isCount`: the values are whole numbers.
export function Chart({ title, series, data, height = 150, format = number, isCount = false, marks = [], span = 0, limit = null }) {
  const holder = useRef(null), chart = useRef(null), latest = useRef({}), [at, setAt] = useState(null);
  latest.current = { marks, span, limit };
  useEffect(() => {
    const element = holder.current;
    const draw = () => {
      chart.current?.destroy();
      chart.current = new uplot(options(element.clientWidth, height, { series, format, isCount }, latest, setAt), columns(data, series), element);
    };
    draw();
    const resized = new ResizeObserver(() => {
      if (chart.current && element.clientWidth && Math.abs(chart.current.width - element.clientWidth) > 1)
        chart.current.setSize({ width: element.clientWidth, height });
    });
    resized.observe(element);
    const themed = new MutationObserver(draw), scheme = matchMedia("(prefers-color-scheme: dark)");
    themed.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    scheme.addEventListener("change", draw);
    return () => {
      resized.disconnect(); themed.disconnect(); scheme.removeEventListener("change", draw);
      chart.current?.destroy(); chart.current = null;
    };
  }, [series, height]);
  useEffect(() => { chart.current?.setData(columns(data, series)); }, [data, data.times.length, data.times.at(-1)]);
  const shown = at !== null && at < data.times.length ? at : data.times.length - 1;
  const value = ({ column }) => {
    const values = data.columns[column] ?? [], known = (each) => each !== null && each !== undefined;
    return format(at === null ? values.slice(-RECENT_POINTS).findLast(known) : values[shown]);
  };
  const words = series.map((each) => `${each.label} ${value(each)}`).join(", ");
  return html`<figure class="chart">
    <figcaption>${title}</figcaption>
    <div ref=${holder} role="img" aria-label="${title}: ${words}"></div>
    <ul class="legend" aria-hidden="true">
      ${series.map((each) => html`<li key=${each.label}><${Line} of=${each} />${each.label} <b>${value(each)}</b></li>`)}
      ${limit && html`<li><${Line} of=${LIMIT} />${limit.label} <b>${format(limit.value)}</b></li>`}
      ${at !== null && shown >= 0 && html`<li class="muted">at ${clock(data.times[shown])}</li>`}
    </ul>
  </figure>`;
}

const LIMIT = { color: "--muted", line: "dotted" };
const Line = ({ of }) => html`<span class=${`line line${of.color.slice(1)} ${of.line ?? "solid"}`}></span>`;

// A line needs two values beside each other: the others are dots.
function isolated(values) {
  const isValue = (at) => values[at] !== null && values[at] !== undefined;
  return values.flatMap((_, at) => (isValue(at) && !isValue(at - 1) && !isValue(at + 1) ? [at] : []));
}

const columns = (data, series) => [data.times, ...series.map(({ column }) => data.columns[column] ?? [])];

function options(width, height, { series, format, isCount }, latest, setAt) {
  const axis = { stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  return {
    width,
    height,
    padding: [8, 26, 0, 0],
    cursor: { y: false, points: { size: 6 } },
    legend: { show: false },
    scales: { x: { time: true, range: (u) => times(u.data[0], latest.current.span) }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), ceiling(high)] } },
    axes: [{ ...axis, size: 26, space: 64, values: timeLabels }, { ...axis, ...(isCount ? { incrs: COUNTS } : {}), size: 46, space: 26, values: (_, ticks) => ticks.map((tick) => format(tick)) }],
    series: [
      {},
      ...series.map((each) => ({
        stroke: color(each.color),
        fill: each.fill ? `${color(each.color)}22` : undefined,
        width: 1.75,
        dash: DASHES[each.line],
        spanGaps: true,
        points: { size: 5, fill: color(each.color), filter: (u, index) => isolated(u.data[index]) },
        paths: each.stepped ? uplot.paths.stepped({ align: 1 }) : undefined,
      })),
    ],
    hooks: {
      draw: [(u) => { drawMarks(u, latest.current.marks); drawLimit(u, latest.current.limit); }],
      setCursor: [(u) => setAt(u.cursor.left >= 0 ? u.cursor.idx ?? null : null)],
    },
  };
}

// Parts of the span, and the shortest axis in seconds.
const PARTS = [60, 20, 10, 5, 2], MIN_LENGTH = 60;

// The end of the axis moves with each second, its length in few steps: a young server has no empty chart.
function times(data, span) {
  if (!data?.length) return [Date.now() / 1000 - (span || MIN_LENGTH), Date.now() / 1000];
  const low = data[0], high = data.at(-1);
  if (!span) return [low, Math.max(high, low + 1)];
  const length = PARTS.map((part) => span / part).find((each) => each >= MIN_LENGTH && high - low <= each) ?? span;
  return [high - length, high];
}

// The next of 1, 2, 3, 4, 5, 6, 8, 10 times a power of ten: the axis does not move with each value.
function ceiling(high) {
  if (!high || high <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(high));
  return power * ([1, 2, 3, 4, 5, 6, 8].find((each) => high * 1.04 <= each * power) ?? 10);
}

// Hours and minutes; with seconds where the ticks are closer than a minute.
const timeLabels = (_, ticks, __, ___, step) => ticks.map((time) => clock(time).slice(0, step < 60 ? 8 : 5));

// A mark at the top for each decision that changed the number of workers.
function drawMarks(u, marks) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.fillStyle = color("--text");
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

function drawLimit(u, limit) {
  if (!limit || limit.value > u.scales.y.max) return;
  const { ctx, bbox } = u, y = u.valToPos(limit.value, "y", true);
  ctx.save();
  ctx.strokeStyle = color(LIMIT.color);
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.setLineDash(DASHES[LIMIT.line].map((each) => each * devicePixelRatio));
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}

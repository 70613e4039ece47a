// The tab "Now": each model's queue, workers and waits, and why there are as many workers as there are.

import { html, useEffect, useMemo, useState } from "./vendor/preact.js";
import { getJson } from "./api.js";
import { Chart } from "./chart.js";
import { clock, number, seconds } from "./format.js";

const SPANS = [["10 min", 600], ["2 h", 7200], ["24 h", 86400]];
const WORKERS = [
  { label: "wanted", column: "desired", color: "--accent", stepped: true },
  { label: "ready", column: "ready", color: "--good", fill: true, stepped: true },
  { label: "starting", column: "starting", color: "--warn", stepped: true },
];
const TASKS = [
  { label: "waiting", column: "queued", color: "--accent", fill: true },
  { label: "running", column: "running", color: "--good" },
];
const WAITS = [
  { label: "median", column: "wait_p50", color: "--good" },
  { label: "99 %", column: "wait_p99", color: "--bad" },
];
const RATE = [{ label: "requested", column: "arrived", color: "--muted" }, { label: "done", column: "completed", color: "--good" }];
const TOKENS = [{ label: "tokens", column: "tokens", color: "--good", fill: true }];

export function Now({ state, session, points }) {
  const models = session.models.filter(({ name }) => state.models[name]);
  const [span, setSpan] = useState(600);
  return html`
    <div class="bar">
      <h2>Now</h2>
      <span class="choices" role="group" aria-label="Time span of the charts">
        ${SPANS.map(([label, value]) => html`<button aria-pressed=${span === value} onClick=${() => setSpan(value)}>${label}</button>`)}
      </span>
    </div>
    ${!state.server.server?.controller && html`<p class="notice">No controller has reported. The numbers of workers do not change.</p>`}
    ${state.server.server?.paused_since && html`<p class="notice">Scaling is paused since ${clock(state.server.server.paused_since)}.</p>`}
    ${models.map((model) => html`<${Model} key=${model.name} model=${model} row=${state.models[model.name]} span=${span}
      points=${points} decisions=${state.decisions} connection=${state.connection} />`)}`;
}

function Model({ model, row, span, points, decisions, connection }) {
  const data = usePast(model.name, span, points, connection);
  const own = useMemo(() => decisions.filter((each) => each.model === model.name), [decisions, model.name]);
  const steps = useMemo(() => own.filter((each) => each.valid && each.desired !== each.provisioned), [own]);
  const isText = model.task === "text";
  const perSecond = useMemo(() => rates(data, isText ? ["tokens"] : ["arrived", "completed"]), [data, data.times.at(-1)]);
  return html`<section class="card" aria-label=${`Model ${model.name}`}>
    <header class="bar">
      <h3>${model.name}</h3>
      <span class="tag">${model.task}</span><span class="muted">${model.engine}</span>
      <span class="spacer"></span>
      ${row.cannot_start ? html`<strong class="bad">cannot start: ${row.cannot_start}</strong>` : html`<${Workers} row=${row} />`}
    </header>
    <dl class="numbers">
      <${Fact} name="waiting" value=${number(row.queued)} />
      <${Fact} name="running" value=${number(row.running)} />
      <${Fact} name="work" value=${seconds(row.work_s)} hint="Seconds of one worker for all that waits and runs" />
      <${Fact} name="oldest waits" value=${seconds(row.oldest_wait_s)} alarm=${row.oldest_wait_s > model.max_wait_s} />
      <${Fact} name="promised wait" value=${seconds(model.max_wait_s)} />
      <${Fact} name=${"requests"} value=${`${number(row.arrival_rate)}/s`} />
    </dl>
    <div class="charts">
      <${Chart} title="Workers" series=${WORKERS} data=${data} marks=${steps} />
      <${Chart} title="Requests in the queue and in batches" series=${TASKS} data=${data} />
      <${Chart} title="Wait before the first step" series=${WAITS} data=${data} unit=" s" />
      <${Chart} title=${isText ? "Tokens per second" : "Requests per second"} series=${isText ? TOKENS : RATE} data=${perSecond} />
    </div>
    <${Why} row=${row} decisions=${own} />
  </section>`;
}

function Workers({ row }) {
  const parts = [`${row.ready ?? "–"} ready`];
  if (row.starting) parts.push(`${row.starting} starting`);
  if (row.draining) parts.push(`${row.draining} draining`);
  if (row.spares) parts.push(`${row.spares} standby`);
  return html`<span><strong>${row.desired ?? "–"} wanted</strong> <span class="muted">of ${row.min_workers ?? "–"} to ${row.max_workers ?? "–"}:</span> ${parts.join(", ")}
    ${row.crashes > 0 && html`<strong class="bad">, ${row.crashes === 1 ? "a crash" : `${row.crashes} crashes in a row`}</strong>`}</span>`;
}

const Fact = ({ name, value, hint, alarm }) => html`<div title=${hint}><dt>${name}</dt><dd class=${alarm ? "bad" : ""}>${value}</dd></div>`;

function Why({ row, decisions }) {
  const recent = decisions.slice(-30).reverse();
  return html`<div class="why">
    <p><strong>Why:</strong> ${row.reason || "no decision yet"}${row.blocked_reason && html` <span class="bad">${row.blocked_reason}</span>`}
      ${row.rolling_update && html` <span>${row.rolling_update}</span>`}</p>
    ${recent.length > 0 && html`<details><summary>Last decisions</summary>
      <ol class="decisions">${recent.map((each) => html`<li key=${each.number}>
        <time>${clock(each.time)}</time> <strong>${each.valid ? `${each.provisioned} → ${each.desired}` : "unchanged"}</strong> ${each.reason}
      </li>`)}</ol></details>`}
  </div>`;
}

// The past of a model over a span, with new points from the live stream at its end. A new connection loads it again.
function usePast(model, span, points, connection) {
  const [past, setPast] = useState({ step_s: 1, times: [], columns: {} });
  useEffect(() => {
    let isGone = false;
    const load = () => getJson(`/ui/history?model=${encodeURIComponent(model)}&span=${span}`)
      .then((found) => { if (!isGone) setPast(found); }, () => {});
    load();
    const timer = span > 600 ? setInterval(load, 10000) : 0;
    return () => { isGone = true; clearInterval(timer); };
  }, [model, span, connection]);
  useEffect(() => points.listen((latest) => {
    const own = latest[model];
    if (span > 600 || !own || !own.times.length) return;
    setPast((before) => appended(before, own, span));
  }), [model, span, points]);
  return past;
}

export function appended(past, latest, span) {
  const [time] = latest.times.slice(-1);
  if (past.times.length && time <= past.times.at(-1)) return past;
  const from = past.times.findIndex((each) => each > time - span);
  const cut = from < 0 ? past.times.length : from;
  const columns = {};
  for (const [name, values] of Object.entries(latest.columns)) columns[name] = [...(past.columns[name] ?? []).slice(cut), values.at(-1)];
  return { step_s: past.step_s, times: [...past.times.slice(cut), time], columns };
}

function rates(data, names) {
  const columns = {};
  for (const name of names) columns[name] = (data.columns[name] ?? []).map((value) => value / data.step_s);
  return { ...data, columns };
}

// The tab "Now": whether all is well; each model's queue, workers and waits, and why there are so many workers.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/preact.js";
import { Chart } from "./chart.js";
import { moment, number, seconds } from "./format.js";
import { Models, Verdict } from "./overview.js";
import { rates, usePast } from "./past.js";
import { problemsOf } from "./problems.js";

const SPANS = [["10 min", 600], ["2 h", 7200], ["24 h", 86400]];
// Blue and orange differ for everyone; so do the kinds of line.
const WORKERS = [
  { label: "ready", column: "ready", color: "--accent", fill: true, stepped: true },
  { label: "starting", column: "starting", color: "--orange", stepped: true, line: "dotted" },
  { label: "wanted", column: "desired", color: "--text", stepped: true, line: "dashed" },
];
const TASKS = [
  { label: "waiting", column: "queued", color: "--orange", fill: true },
  { label: "running", column: "running", color: "--accent", line: "dashed" },
];
const WAITS = [
  { label: "median", column: "wait_p50", color: "--accent" },
  { label: "99 %", column: "wait_p99", color: "--orange", line: "dashed" },
];
const RATE = [{ label: "done", column: "completed", color: "--accent" }, { label: "requested", column: "arrived", color: "--orange", line: "dashed" }];
const TOKENS = [{ label: "tokens", column: "tokens", color: "--accent", fill: true }];
// Of more models, charts are shown of those that need a look only.
const MAX_OPEN = 4;
let kept = { span: 600, shown: null };

export function Now({ state, session, points }) {
  const models = session.models.filter(({ name }) => state.models[name]);
  const [span, setSpan] = useState(kept.span), [shown, setShown] = useState(kept.shown ?? firstShown(models, state));
  useEffect(() => { kept = { span, shown }; }, [span, shown]);
  const chosen = useRef(null);
  const toggle = (name) => {
    const isShown = shown.includes(name);
    setShown(isShown ? shown.filter((each) => each !== name) : [...shown, name]);
    chosen.current = isShown ? null : name;
  };
  useEffect(() => {
    if (chosen.current) document.getElementById(`charts-${chosen.current}`)?.scrollIntoView({ block: "center" });
    chosen.current = null;
  }, [shown]);
  return html`
    <${Verdict} state=${state} models=${models} />
    ${models.length > 1 && html`<${Models} state=${state} models=${models} shown=${shown} onShow=${toggle} />`}
    <div class="bar">
      <h2>Now</h2>
      <span class="choices" role="group" aria-label="Time span of the charts">
        ${SPANS.map(([label, value]) => html`<button key=${value} aria-pressed=${span === value} onClick=${() => setSpan(value)}>${label}</button>`)}
      </span>
    </div>
    ${models.filter(({ name }) => models.length === 1 || shown.includes(name)).map((model) => html`<${Model} key=${model.name} model=${model}
      row=${state.models[model.name]} span=${span} points=${points} decisions=${state.decisions} connection=${state.connection} />`)}`;
}

function firstShown(models, state) {
  if (models.length <= MAX_OPEN) return models.map(({ name }) => name);
  const faulty = new Set(problemsOf(state, models).map(({ model }) => model));
  const load = ({ name }) => (faulty.has(name) ? 1e9 : 0) + state.models[name].queued + state.models[name].running;
  return [...models].sort((a, b) => load(b) - load(a)).slice(0, MAX_OPEN / 2).map(({ name }) => name);
}

function Model({ model, row, span, points, decisions, connection }) {
  const data = usePast(model.name, span, points, connection);
  const own = useMemo(() => decisions.filter((each) => each.model === model.name), [decisions, model.name]);
  const steps = useMemo(() => own.filter((each) => each.valid && each.desired !== each.provisioned), [own]);
  const isText = model.task === "text";
  const perSecond = useMemo(() => rates(data, isText ? ["tokens"] : ["arrived", "completed"]), [data, data.times.at(-1)]);
  return html`<section class="card" id=${`charts-${model.name}`} aria-label=${`Model ${model.name}`}>
    <header class="bar">
      <h3>${model.name}</h3>
      <span class="tag">${model.task}</span><span class="muted">${model.engine}</span>
      <span class="spacer"></span>
      ${row.cannot_start ? html`<strong class="bad">cannot start: ${row.cannot_start}</strong>` : html`<${Workers} row=${row} />`}
    </header>
    <dl class="numbers">
      <${Fact} name="waiting" value=${number(row.queued)} />
      <${Fact} name="oldest waits" value=${seconds(row.oldest_wait_s)} alarm=${row.oldest_wait_s > model.max_wait_s} />
      <${Fact} name="promised wait" value=${seconds(model.max_wait_s)} />
      <${Fact} name="running" value=${number(row.running)} />
      <${Fact} name="work of one worker" value=${seconds(row.work_s)} />
      <${Fact} name="requests" value=${`${number(row.arrival_rate)}/s`} />
    </dl>
    <div class="charts">
      <${Chart} title="Workers" series=${WORKERS} data=${data} marks=${steps} span=${span} isCount />
      <${Chart} title="Tasks in the queue and in batches" series=${TASKS} data=${data} span=${span} isCount />
      <${Chart} title="Wait before the first step" series=${WAITS} data=${data} format=${seconds} span=${span} limit=${{ label: "promised", value: model.max_wait_s }} />
      <${Chart} title=${isText ? "Tokens per second" : "Tasks per second"} series=${isText ? TOKENS : RATE} data=${perSecond} span=${span} />
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

const Fact = ({ name, value, alarm }) => html`<div><dt>${name}</dt><dd class=${alarm ? "bad" : ""}>${value}</dd></div>`;

function Why({ row, decisions }) {
  const recent = decisions.slice(-30).reverse();
  return html`<div class="why">
    ${row.override && html`<p><strong>Fixed by hand</strong> at ${row.override[0]} until ${moment(row.override[1])}; <a href="#workers">Workers and devices</a> ends it.</p>`}
    <p><strong>Why:</strong> ${row.reason || "no decision yet"}${bound(row)}${row.blocked_reason && html` <span class="bad">${row.blocked_reason}</span>`}
      ${row.rolling_update && html` <span>${row.rolling_update}</span>`}</p>
    ${recent.length > 0 && html`<details><summary>Last decisions</summary>
      <ol class="decisions">${recent.map((each) => html`<li key=${each.number}>
        <time>${moment(each.time)}</time> <strong>${each.valid ? `${each.provisioned} → ${each.desired}` : "unchanged"}</strong> ${each.reason}
      </li>`)}</ol></details>`}
  </div>`;
}

// The policy's reason does not say where its number was limited.
function bound({ desired, min_workers: min, max_workers: max, reason }) {
  if (!desired || !/^\d[^;]*$/.test(reason)) return "";
  if (desired === max) return html` <span class="muted">(at most ${max}: max_workers)</span>`;
  return desired === min ? html` <span class="muted">(at least ${min}: min_workers)</span>` : "";
}

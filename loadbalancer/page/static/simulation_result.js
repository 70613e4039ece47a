// The outcome of a simulation: in words, as a table, as charts, and as YAML to copy.

import { html, useMemo, useState } from "./vendor/preact.js";
import { Chart } from "./chart.js";
import { CopyButton } from "./copy.js";
import { number, seconds } from "./format.js";
import { Table } from "./table.js";

const COLORS = { measured: "--muted", current: "--accent", A: "--orange", B: "--good", C: "--extra", D: "--bad" };
const LINES = { measured: "solid", current: "solid", A: "dashed", B: "dotted", C: "dashed", D: "dotted" };
const TITLES = { measured: "What really happened", current: "Present settings, simulated" };
const ARRIVALS = [{ label: "requests per minute", column: "arrivals", color: "--accent", fill: true }];
// A part of the past that is as good as all of it.
const KNOWN_SHARE = 0.9;

export function Outcome({ found, price }) {
  const { traffic, runs } = found;
  const rows = useMemo(() => allRows(traffic, runs), [found]);
  const data = useMemo(() => chartData(traffic, rows), [rows]);
  const series = useMemo(() => rows.filter(({ workers }) => workers).map(({ name }) => ({ label: shortTitle(name), column: name, color: COLORS[name], line: LINES[name], stepped: true })), [rows]);
  const [current, ...others] = runs;
  const hours = (traffic.arrivals.length * traffic.step_s) / 3600;
  return html`<section class="card" aria-label="Outcome">
    <h3>Outcome</h3>
    <p class="muted">${number(traffic.requests)} ${found.isInvented ? "invented requests" : `request${traffic.requests === 1 ? "" : "s"}`} of ${found.model} in ${seconds(hours * 3600)},
      each ${seconds(traffic.mean_work_s)} of a worker's time on average.</p>
    <ul class="verdicts">${others.map((run) => html`<li key=${run.name}><${Verdict} run=${run} current=${current} /></li>`)}</ul>
    <${Table} label="Outcome by settings" columns=${["Settings", "#In time", "#Wait, median", "#Wait, 99 %", "#Never served", "#Worker hours", ...(price ? ["#Cost"] : []), "#Starts", "#Busy"]}>
      ${rows.map((row) => html`<tr key=${row.name}>
        <th scope="row"><span class=${`key key-${row.name}`}></span>${TITLES[row.name] ?? `Settings ${row.name}`}</th>
        <td class="num">${share(row.in_time)} <span class="muted">within ${number(row.max_wait_s)} s</span></td>
        <td class="num">${seconds(row.wait_p50_s)}</td><td class="num">${row.wait_p99_s === null ? "never" : seconds(row.wait_p99_s)}</td>
        <td class="num">${number(row.unserved)}</td>
        <td class="num">${number(row.worker_hours)} ${row.name !== "current" && html`<${Change} value=${row.worker_hours} base=${current.worker_hours} />`}</td>
        ${price ? html`<td class="num">${row.worker_hours === null ? "–" : (row.worker_hours * price).toFixed(2)}</td>` : ""}
        <td class="num">${number(row.starts)}</td><td class="num">${row.utilisation === null ? "–" : share(row.utilisation)}</td></tr>`)}<//>
    ${traffic.measured && traffic.measured.known_share < KNOWN_SHARE && html`<p class="muted">The server remembers its workers
      for ${share(traffic.measured.known_share)} of this time only: since its start, and for a day at most.</p>`}
    <p class="muted">A simulation has one model on its own devices, and workers that never fail. Compare the settings with “present settings, simulated” first; the
      distance of that row to what really happened shows how far it can be trusted.</p>
    <div class="charts two">
      <${Chart} title="Workers, ready and starting" series=${series} data=${data} isCount />
      <${Chart} title="Requests per minute" series=${ARRIVALS} data=${data} />
    </div>
    ${others.length > 0 && html`<${Yaml} model=${found.model} alternatives=${found.alternatives} />`}
  </section>`;
}

function allRows(traffic, runs) {
  const rows = runs.map((run) => ({ ...run }));
  const { measured } = traffic;
  if (!measured) return rows;
  const isKnown = measured.known_share >= KNOWN_SHARE;
  const hours = isKnown ? measured.worker_hours / measured.known_share : null;
  return [{ ...measured, name: "measured", max_wait_s: runs[0].max_wait_s, worker_hours: hours, starts: null, utilisation: null }, ...rows];
}

function chartData({ start, step_s: step, arrivals }, rows) {
  const columns = { arrivals: arrivals.map((count) => (60 * count) / step) };
  for (const { name, workers } of rows) columns[name] = arrivals.map((_, at) => workers?.[at] ?? null);
  return { times: arrivals.map((_, at) => start + at * step), columns };
}

const shortTitle = (name) => ({ measured: "really", current: "present" })[name] ?? name;
const percent = (change) => `${Math.abs(100 * change).toFixed(Math.abs(change) < 0.1 ? 1 : 0)} %`;
const share = (value) => `${Number((100 * value).toPrecision(value > 0.99 ? 4 : 3))} %`;

function Verdict({ run, current }) {
  const keeps = run.in_time >= run.percentile / 100;
  const promise = keeps ? "as it promises" : html`<span class="bad">where it promises ${number(run.percentile, 4)} %</span>`;
  return html`<strong>${run.name}</strong> starts ${share(run.in_time)} of the requests within ${number(run.max_wait_s)} s, ${promise}, and needs ${inWords(run.worker_hours, current.worker_hours)}.`;
}

function inWords(hours, base) {
  const change = base ? hours / base - 1 : 0;
  if (Math.abs(change) < 0.005) return "as many worker hours as now";
  return `${percent(change)} ${change > 0 ? "more" : "fewer"} worker hours than now`;
}

function Change({ value, base }) {
  if (!base || value === null) return "";
  const change = value / base - 1;
  if (Math.abs(change) < 0.005) return "";
  return html`<span class=${change > 0 ? "warn" : "good"}>${change > 0 ? "+" : "−"}${percent(change)}</span>`;
}

export function yaml(model, fields) {
  const { max_wait_s: wait, percentile, ...plain } = fields;
  const lines = Object.entries(plain).map(([name, value]) => `      ${name}: ${value}`);
  if (wait !== undefined || percentile !== undefined) lines.push("      slo:");
  if (wait !== undefined) lines.push(`        max_wait_s: ${wait}`);
  if (percentile !== undefined) lines.push(`        percentile: ${percentile}`);
  const name = /^[A-Za-z][A-Za-z0-9_-]*$/.test(model) ? model : JSON.stringify(model);
  return `models:\n  ${name}:\n    scaling:\n${lines.join("\n")}`;
}

function Yaml({ model, alternatives }) {
  const [at, setAt] = useState(0);
  const text = yaml(model, alternatives[at].fields);
  return html`<div class="yaml"><div class="bar"><h4>Put into the configuration</h4>
      <span class="choices" role="group" aria-label="Settings to copy">${alternatives.map(({ letter }, index) => html`<button key=${index} aria-pressed=${index === at} onClick=${() => setAt(index)}>${letter}</button>`)}</span>
      <${CopyButton} text=${text} /></div>
    <pre tabindex="0" aria-label="Settings as YAML"><code>${text}</code></pre>
    <p class="muted">Then <code>python -m controller reload</code> puts them in force without a restart.</p></div>`;
}

// The tab "Simulator": a model's recorded traffic with other settings, beside what really happened.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { events, request } from "./api.js";
import { CopyButton } from "./copy.js";
import { number } from "./format.js";
import { Outcome } from "./simulation_result.js";

const LETTERS = ["A", "B", "C", "D"];
const POLICIES = ["slo_work", "queue_depth", "ongoing_requests", "static"];
const FIELDS = [
  { id: "min_workers", label: "Workers at least", min: 0, max: 1000, step: 1 },
  { id: "max_workers", label: "Workers at most", min: 1, max: 1000, step: 1 },
  { id: "max_wait_s", label: "Promised wait in seconds", min: 0.1, max: 86400, step: "any" },
  { id: "percentile", label: "Per cent of the requests", min: 1, max: 99.99, step: "any" },
];
const SOURCES = [["Last hour", 1], ["6 h", 6], ["24 h", 24], ["7 days", 168], ["An invented day", 0]];
const RECORD = "server:\n  record_arrivals: arrivals.csv";

// What was typed and found last: it is there again after a look at another tab.
let last = null;

export function Simulator({ session, state }) {
  const [form, setForm] = useState(last?.form ?? { model: session.models[0].name, hours: session.records_arrivals ? 24 : 0, columns: [{}], price: "" });
  const [found, setFound] = useState(last?.found ?? null), [problem, setProblem] = useState(null), [progress, setProgress] = useState(null);
  const running = useRef(null);
  useEffect(() => { last = { form, found }; }, [form, found]);
  useEffect(() => () => running.current?.abort(), []);
  const row = state.models[form.model] ?? {}, model = session.models.find(({ name }) => name === form.model);
  const present = { ...row, max_wait_s: model.max_wait_s, percentile: model.percentile };
  const alternatives = form.columns.map((column, at) => ({ letter: LETTERS[at], fields: changedFields(column, present) }))
    .filter(({ fields }) => Object.keys(fields).length);
  // The server names the alternatives in their order; a column without a change is none.
  const named = (reply) => ({ ...reply, name: alternatives[LETTERS.indexOf(reply.name)]?.letter ?? reply.name });
  const run = async (event) => {
    event.preventDefault();
    const wrong = alternatives.find(({ fields }) => (fields.min_workers ?? present.min_workers) > (fields.max_workers ?? present.max_workers));
    if (wrong) { setProblem(`Settings ${wrong.letter}: more workers at least than at most.`); return; }
    const abort = (running.current = new AbortController());
    setProblem(null); setFound(null); setProgress({ name: "current", share: 0, done: 0 });
    const next = { model: form.model, alternatives, traffic: null, runs: [], isInvented: !form.hours };
    try {
      const body = { model: form.model, alternatives: alternatives.map(({ fields }) => fields), source: form.hours ? "recorded" : "invented" };
      if (form.hours) body.hours = form.hours;
      const response = await request("POST", "/ui/simulate", { body, signal: abort.signal });
      for await (const { event: kind, data } of events(response)) {
        if (kind === "error") throw new Error(data.error.message);
        if (data.type === "progress") setProgress({ ...named(data), done: next.runs.length });
        else if (data.type === "traffic") next.traffic = data;
        else if (data.type === "run") next.runs.push(named(data));
      }
      if (next.runs.length === alternatives.length + 1) setFound(next);
      else throw new Error("The server has ended the simulation.");
    } catch (error) { if (!abort.signal.aborted) setProblem(error.message); }
    if (running.current === abort) { running.current = null; setProgress(null); }
  };
  const stop = () => { running.current?.abort(); running.current = null; setProgress(null); };
  return html`<div class="bar"><h2>Simulator</h2></div>
    <p class="lead muted">What would other settings have cost, and how long would requests have waited? The autoscaler of this
      server runs again on its own traffic, with workers as fast as they were measured here.</p>
    ${!session.records_arrivals && html`<${HowToRecord} />`}
    <form class="card" onSubmit=${run} aria-label="Simulation">
      <div class="commands">
        <label>Model <select value=${form.model} onChange=${(event) => setForm({ ...form, model: event.target.value, columns: [{}] })}>
          ${session.models.map(({ name }) => html`<option key=${name} value=${name}>${name}</option>`)}</select></label>
        <label>Traffic <select value=${form.hours} onChange=${(event) => setForm({ ...form, hours: Number(event.target.value) })}>
          ${SOURCES.filter(([, hours]) => !hours || session.records_arrivals).map(([label, hours]) => html`<option key=${hours} value=${hours}>${label}</option>`)}</select></label>
        <label>Price of a worker hour <input inputmode="decimal" placeholder="none" value=${form.price} onInput=${(event) => setForm({ ...form, price: event.target.value })} /></label>
      </div>
      <${Settings} columns=${form.columns} present=${present} onChange=${(columns) => setForm({ ...form, columns })} />
      <div class="bar">
        ${progress ? html`<button key="stop" type="button" onClick=${stop}>Stop</button>
          <progress max=${alternatives.length + 1} value=${progress.done + progress.share} aria-label="Progress of the simulation"></progress>
          <span class="muted" role="status">${progress.name === "current" ? "present settings" : `settings ${progress.name}`}: ${Math.round(100 * progress.share)} %</span>`
        : html`<button key="run" class="primary">Simulate</button>
          <span class="muted">${alternatives.length ? `the present settings and ${number(alternatives.length)} other${alternatives.length > 1 ? "s" : ""}` : "the present settings only: change a value to compare"}</span>`}
      </div>
      ${problem && html`<p class="bad" role="alert">${problem}</p>`}
    </form>
    ${found && html`<${Outcome} found=${found} price=${Number(form.price.replace(",", ".")) || 0} />`}`;
}

// The fields of a column that differ from the present settings, as numbers.
export function changedFields(column, present) {
  const found = {};
  for (const [name, value] of Object.entries(column)) {
    if (value === "" || value === undefined) continue;
    const typed = name === "policy" ? value : Number(value);
    if (typed !== present[name]) found[name] = typed;
  }
  return found;
}

function Settings({ columns, present, onChange }) {
  const set = (at, name, value) => onChange(columns.map((column, index) => (index === at ? { ...column, [name]: value } : column)));
  const remove = (at) => onChange(columns.filter((_, index) => index !== at));
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Settings to compare"><table class="settings">
    <thead><tr><th scope="col">Setting</th><th scope="col" class="num">Now</th>
      ${columns.map((_, at) => html`<th scope="col" key=${at}>${LETTERS[at]}
        ${columns.length > 1 && html`<button type="button" class="quiet" aria-label=${`Remove settings ${LETTERS[at]}`} onClick=${() => remove(at)}>×</button>`}</th>`)}
      <th>${columns.length < LETTERS.length && html`<button type="button" class="quiet" onClick=${() => onChange([...columns, {}])}>Add settings</button>`}</th></tr></thead>
    <tbody>${FIELDS.map(({ id, label, ...limits }) => html`<tr key=${id}><th scope="row">${label}</th><td class="num">${number(present[id], 6)}</td>
      ${columns.map((column, at) => html`<td key=${at}><input type="number" ...${limits} aria-label=${`${label}, settings ${LETTERS[at]}`}
        placeholder=${present[id] ?? ""} value=${column[id] ?? ""} onInput=${(event) => set(at, id, event.target.value)} /></td>`)}<td></td></tr>`)}
      <tr><th scope="row">Policy</th><td class="num">${present.policy ?? "–"}</td>
        ${columns.map((column, at) => html`<td key=${at}><select aria-label=${`Policy, settings ${LETTERS[at]}`} value=${column.policy ?? ""} onChange=${(event) => set(at, "policy", event.target.value)}>
          <option value="">as now</option>${POLICIES.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select></td>`)}<td></td></tr>
    </tbody></table></div>`;
}

function HowToRecord() {
  return html`<div class="notice"><p><strong>This server does not record its requests.</strong> With these lines in the configuration and a restart it keeps a
      line for each: when it came, how long it waited and worked. Prompts and keys are not written. Until then an invented day can be replayed.</p>
    <pre><code>${RECORD}</code></pre><${CopyButton} text=${RECORD} /></div>`;
}

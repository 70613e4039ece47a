// What is seen first: whether all is well, and a row for each model.

import { html } from "./vendor/preact.js";
import { number, seconds } from "./format.js";
import { problemsOf, stateOf } from "./problems.js";

export function Verdict({ state, models }) {
  const problems = problemsOf(state, models);
  const rows = models.map(({ name }) => state.models[name] ?? {}), sum = (field) => rows.reduce((all, row) => all + (row[field] ?? 0), 0);
  const ready = Object.values(state.workers).filter((row) => row.state === "ready").length;
  const running = sum("running"), waiting = sum("queued"), ended = Object.values(state.workers).reduce((all, row) => all + (row.finished ?? 0) + (row.failed ?? 0), 0);
  return html`<section class=${`verdict ${problems[0]?.tone ?? "good"}`} aria-label="Summary">
    <p><strong>${inWords(problems)}</strong> <span class="muted num">${counted(ready, "worker")} ready, ${counted(running, "task")} running, ${number(waiting)} waiting</span></p>
    ${ready > 0 && running + waiting + ended === 0 && html`<p>These workers have had no request yet. Send one from the <a href="#playground">playground</a>, or
      from a program: see <a href="/docs">the API</a>.</p>`}
    ${problems.length > 0 && html`<ul>${problems.map(({ tone, text }) => html`<li key=${text.replace(/\d+/g, "")} class=${tone}>${text}</li>`)}</ul>`}
  </section>`;
}

const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

function inWords(problems) {
  const bad = problems.filter(({ tone }) => tone === "bad").length;
  if (bad) return `${counted(bad, "problem")}.`;
  return problems.length ? `${counted(problems.length, "note")}.` : "All is well.";
}

// A row for each model, with a button that shows or hides its charts.
export function Models({ state, models, shown, onShow }) {
  return html`<section class="card"><div class="scroll" tabindex="0" role="region" aria-label="Models"><table>
    <thead><tr><th scope="col">Model</th><th scope="col">State</th>
      ${["Workers", "Waiting", "Oldest waits"].map((each) => html`<th scope="col" class="num" key=${each}>${each}</th>`)}
      ${["Promised", "Running", "Requests"].map((each) => html`<th scope="col" class="num wide" key=${each}>${each}</th>`)}<th scope="col" class="end">Charts</th></tr></thead>
    <tbody>${models.map((model) => {
      const row = state.models[model.name], [tone, word] = stateOf(row, model.max_wait_s), isShown = shown.includes(model.name);
      return html`<tr key=${model.name}><th scope="row">${model.name} <span class="muted wide">${model.task}</span></th>
        <td><span class=${`dot ${tone}`}>${word}</span></td>
        <td class="num">${row.ready ?? "–"}<span class="muted"> of ${row.desired ?? "–"}</span></td>
        <td class="num">${number(row.queued)}</td>
        <td class=${row.oldest_wait_s > model.max_wait_s ? "num bad" : "num"}>${row.oldest_wait_s ? seconds(row.oldest_wait_s) : "–"}</td>
        <td class="num muted wide">${seconds(model.max_wait_s)}</td>
        <td class="num wide">${number(row.running)}</td><td class="num wide">${number(row.arrival_rate)}/s</td>
        <td class="end"><button type="button" class="quiet" aria-expanded=${isShown} aria-label=${`Charts of ${model.name}`} onClick=${() => onShow(model.name)}>${isShown ? "Hide" : "Show"}</button></td></tr>`;
    })}</tbody></table></div></section>`;
}

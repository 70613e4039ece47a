// The tab "Access": who is looking, within which limits, and what each key has used.

import { html } from "./vendor/preact.js";
import { number, seconds } from "./format.js";
import { usePolled } from "./queue.js";
import { Table } from "./table.js";

export function Keys({ session, isAdmin }) {
  const limits = [
    ["Name", session.owner],
    ["Scopes", session.scopes.join(", ") || "none"],
    ["Requests per minute", session.requests_per_minute === null ? "unlimited" : number(session.requests_per_minute)],
    ["Requests at the same time", session.max_concurrent === null ? "unlimited" : number(session.max_concurrent)],
    ["Weight in the queue", number(session.weight)],
  ];
  return html`<div class="bar"><h2>Access</h2></div>
    <section class="card"><h3>You</h3>
      ${!session.keys && html`<p class="lead">This server asks for no API key. <code>scripts/keys add NAME</code> makes the first one; from then on every request needs a key.</p>`}
      <div class="scroll" tabindex="0" role="region" aria-label="Own limits"><table class="facts"><tbody>${limits.map(([name, value]) => html`<tr key=${name}><th scope="row">${name}</th><td>${value}</td></tr>`)}</tbody></table></div>
    </section>
    <${Usage} session=${session} isAdmin=${isAdmin} />`;
}

const COLUMNS = ["Key", "#Waiting", "#Running", "#Work, last hour", "#Done, last hour", "#Tokens, last hour", "#Work in all", "#Done", "#Failed", "#Cancelled", "#Tokens"];

function Usage({ session, isAdmin }) {
  const [found, problem] = usePolled("/ui/usage");
  const rows = found?.owners ?? [], whole = rows.reduce((sum, row) => sum + row.hour_work_s, 0);
  return html`<section class="card"><h3>${isAdmin && session.keys ? "Use by key" : "Own use"}</h3>
    <p class="muted">Tasks (an image, a text or a call each) that have ended since the start of the server. Work is the time that a worker would need for them one after the other.</p>
    ${problem && html`<p class="bad" role="alert">${problem}</p>`}
    ${rows.length > 0 && html`<${Table} label="Use by key" columns=${COLUMNS}>
      ${rows.map((row) => html`<tr key=${row.owner}><th scope="row">${row.owner}</th>
        <td class="num">${number(row.queued)}</td><td class="num">${number(row.running)}</td><td class="num">${rows.length > 1 && whole > 0 && html`<meter min="0" max=${whole} value=${row.hour_work_s} aria-label=${`share of ${row.owner}`}></meter> `}${seconds(row.hour_work_s)}</td>
        ${[row.hour_done, row.hour_tokens].map((value, at) => html`<td class="num" key=${at}>${number(value)}</td>`)}
        <td class="num">${seconds(row.work_s)}</td>
        ${[row.done, row.failed, row.cancelled, row.tokens].map((value, at) => html`<td class="num" key=${at}>${number(value)}</td>`)}</tr>`)}<//>`}
    ${found && rows.length === 0 && html`<p class="muted">No task has ended yet.</p>`}
    ${found && found.total > found.limit && html`<p class="muted">The first ${found.limit} of ${number(found.total)}.</p>`}
  </section>`;
}

// The tab "Access": who is looking, and within which limits.

import { html } from "./vendor/preact.js";
import { number } from "./format.js";

export function Keys({ session }) {
  const limits = [
    ["Name", session.owner],
    ["Scopes", session.scopes.join(", ") || "none"],
    ["Requests per minute", session.requests_per_minute === null ? "unlimited" : number(session.requests_per_minute)],
    ["Requests at the same time", session.max_concurrent === null ? "unlimited" : number(session.max_concurrent)],
    ["Weight in the queue", number(session.weight)],
  ];
  return html`<div class="bar"><h2>Access</h2></div>
    <section class="card">
      ${!session.keys && html`<p>This server asks for no API key. <code>scripts/keys add NAME</code> makes the first one; from then on every request needs a key.</p>`}
      <table><tbody>${limits.map(([name, value]) => html`<tr key=${name}><th scope="row">${name}</th><td>${value}</td></tr>`)}</tbody></table>
    </section>`;
}

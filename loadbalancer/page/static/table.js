// A table that scrolls within its card, with a named region for keyboards.

import { html } from "./vendor/preact.js";

// `columns`: titles; one that begins with # is of numbers, one that ends with ~ is left out on a phone.
export function Table({ label, columns, children }) {
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${label}><table>
    <thead><tr>${columns.map((each) => html`<th scope="col" key=${each} class=${classOf(each)}>${each.replace(/^#|~$/g, "")}</th>`)}</tr></thead>
    <tbody>${children}</tbody></table></div>`;
}

const classOf = (title) => [title.startsWith("#") && "num", title.endsWith("~") && "wide"].filter(Boolean).join(" ");

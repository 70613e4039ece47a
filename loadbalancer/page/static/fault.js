// What the server refused, beside the field that is at fault.

import { html, useEffect, useMemo, useRef } from "./vendor/preact.js";

let fields = 0;

// The fault of `param`, or without it that of all other fields. `known`: the fields that show their own.
export function Fault({ problem, param, known = [], id }) {
  if (!problem || (param ? problem.param !== param : known.includes(problem.param))) return "";
  return html`<p class="fault" id=${id} role="alert">${problem.message}</p>`;
}

// A field with its label and its fault. The cursor goes to a field with a new fault.
export function Field({ name, param, problem, value, set, type = "text", ...rest }) {
  const input = useRef(null), id = useMemo(() => `fault-${(fields += 1)}`, []), isFaulty = Boolean(problem) && problem.param === param;
  useEffect(() => { if (isFaulty) input.current?.focus(); }, [problem]);
  const state = isFaulty ? { "aria-invalid": "true", "aria-describedby": id } : {};
  return html`<label>${name} <input ref=${input} type=${type} value=${Number.isNaN(value) ? "" : value ?? ""} onInput=${set} ...${state} ...${rest} /></label>
    <${Fault} problem=${problem} param=${param} id=${id} />`;
}

// What a field with this event contains; NaN for an empty number.
export const typedValue = ({ target }) => (target.type === "number" ? target.valueAsNumber : target.value);

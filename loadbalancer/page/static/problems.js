// What is wrong with the server, worst first, in words.

import { moment, number, seconds } from "./format.js";

// Returns [{tone: "bad" or "warn", model?, text}] of the live state. `models` are those of the session.
export function problemsOf(state, models) {
  const { controller, paused_since: paused } = state.server.server ?? {}, found = [];
  const add = (tone, text, model) => found.push({ tone, text, model });
  if (!controller) add("warn", "No controller has reported. The numbers of workers do not change.");
  else if (paused) add("warn", `Scaling is paused since ${moment(paused)}. The numbers of workers do not change.`);
  for (const model of models) if (state.models[model.name]) addOfModel(model, state.models[model.name], add);
  for (const [name, row] of Object.entries(state.workers)) if (WORKERS[row.state]) add("bad", `Worker ${name} ${WORKERS[row.state]}.`, row.model);
  for (const [name, row] of Object.entries(state.devices)) if (row.fault) add("bad", `Device ${name} is not used: ${row.fault}`);
  for (const [name, row] of Object.entries(state.machines ?? {})) {
    if (row.unused_reason) add("bad", `Machine ${name} is not used: ${row.unused_reason}`);
    else if (row.last_report) add("warn", `Machine ${name} has not reported since ${moment(row.last_report)}.`);
  }
  return found.sort((a, b) => (a.tone === "bad" ? 0 : 1) - (b.tone === "bad" ? 0 : 1));
}

const WORKERS = { silent: "sends no sign of life", stuck: "is alive, but its step does not end" };

// Requests below which a share of late ones says little.
const FEW = 20;

function addOfModel({ name, max_wait_s: promised, percentile = 99 }, row, add) {
  if (row.cannot_start) add("bad", `${name} cannot start: ${[row.cannot_start, row.blocked_reason].filter(Boolean).join("; ")}`, name);
  else if (row.blocked_reason) add("bad", `${name}: ${row.blocked_reason}`, name);
  else if (row.crashes > 1) add("bad", `${name}: ${row.crashes} crashes of workers in a row`, name);
  else if (row.desired > 0 && row.ready === 0) add(row.queued > 0 ? "bad" : "warn", `${name} has no ready worker; ${row.starting || "none"} starting.`, name);
  if (row.oldest_wait_s > promised) add("bad", `${name}: a request waits for ${seconds(row.oldest_wait_s)}, where ${seconds(promised)} are promised.`, name);
  const { recent_started: started = 0, recent_late: late = 0 } = row;
  if (started >= FEW && late > started * (1 - percentile / 100)) add("warn", `${name}: ${number(late)} of the ${number(started)} requests of the last ten minutes waited longer than ${seconds(promised)}.`, name);
}

// The state of a model in a word, with the tone of its dot.
export function stateOf(row, promised) {
  if (row.cannot_start) return ["bad", "cannot start"];
  if (row.crashes > 1) return ["bad", "crashes"];
  if (row.oldest_wait_s > promised) return ["bad", "late"];
  if (row.ready === undefined || row.ready === null) return ["muted", "no controller"];
  if (row.ready < row.desired) return ["warn", row.starting ? "starting" : "too few workers"];
  if (row.ready === 0) return ["muted", "scaled to zero"];
  return ["good", row.draining ? "draining" : "ready"];
}

// The live state: one stream for the page, which starts again from the present after a break.

import { events, request } from "./api.js";

const RETRY_MS = 2000;
// The server writes each second. A stream that is silent for so long is broken: the server may be suspended.
const SILENT_MS = 6000;
const MAX_DECISIONS = 500;

// Calls `onState(state)` with a new object at every change, `onPoints(points, time)` with the newest second, and
// `onLost(time, reason)` when the server is lost, in seconds of Unix time, or with null when it is back.
export function watch({ onState, onPoints, onLost, onError }) {
  const stopped = new AbortController();
  run(stopped.signal, { onState, onPoints, onLost, onError });
  return () => stopped.abort();
}

async function run(stopped, { onState, onPoints, onLost, onError }) {
  let heard = Date.now() / 1000;
  while (!stopped.aborted) {
    let reason = "it has closed the connection";
    try {
      for await (const state of states(stopped, onPoints)) {
        if (stopped.aborted) return;
        heard = Date.now() / 1000;
        onLost(null);
        onState(state);
      }
    } catch (error) {
      if (stopped.aborted) return;
      if (error.status === 401 || error.status === 403) { onError(error); return; }
      ({ message: reason } = error);
    }
    onLost(heard, reason);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

// Yields the state after each message of one stream. Throws where it breaks, or is silent for too long.
async function* states(stopped, onPoints) {
  const silent = new AbortController(), stop = () => silent.abort();
  stopped.addEventListener("abort", stop);
  let timer = setTimeout(stop, SILENT_MS), state = null;
  try {
    const response = await request("GET", "/ui/events", { signal: silent.signal });
    for await (const { event, data } of events(response)) {
      clearTimeout(timer);
      timer = setTimeout(stop, SILENT_MS);
      if (event === "state") state = { ...data, connection: data.time };
      else if (event === "changes" && state) {
        state = merged(state, data);
        if (data.points) onPoints(data.points, data.time);
      }
      if (state) yield state;
    }
  } catch (error) {
    throw silent.signal.aborted ? new Error("it does not answer") : error;
  } finally {
    clearTimeout(timer);
    stopped.removeEventListener("abort", stop);
  }
}

export function merged(state, changes) {
  const next = { ...state, time: changes.time };
  for (const table of ["server", "models", "workers", "devices", "machines"]) {
    if (!changes[table]) continue;
    next[table] = { ...state[table] };
    for (const [name, fields] of Object.entries(changes[table])) {
      if (fields === null) delete next[table][name];
      else next[table][name] = { ...next[table][name], ...fields };
    }
  }
  if (changes.decisions) next.decisions = [...state.decisions, ...changes.decisions].slice(-MAX_DECISIONS);
  return next;
}

// The live state: one stream for the page, which starts again from the present after a break.

import { events, request } from "./api.js";

const RETRY_MS = 2000;
const MAX_DECISIONS = 500;

// Calls `onState(state)` with a new object at every change, and `onPoints(points, time)` with the newest second.
export function watch(onState, onPoints, onError) {
  const stopped = new AbortController();
  run(stopped.signal, onState, onPoints, onError);
  return () => stopped.abort();
}

async function run(signal, onState, onPoints, onError) {
  let state = null;
  while (!signal.aborted) {
    try {
      const response = await request("GET", "/ui/events", { signal });
      for await (const { event, data } of events(response)) {
        if (event === "state") state = { ...data, connected: true };
        else if (event === "changes" && state) {
          state = merged(state, data);
          if (data.points) onPoints(data.points, data.time);
        }
        onState(state);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401 || error.status === 403) { onError(error); return; }
    }
    if (state) onState((state = { ...state, connected: false }));
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

export function merged(state, changes) {
  const next = { ...state, time: changes.time, connected: true };
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

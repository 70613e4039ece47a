// What this browser has asked for, newest first. It stays in this browser.

import { useState } from "./vendor/preact.js";

const MAX_ENTRIES = 30;

export function useHistory(name) {
  const slot = `muster.history.${name}`;
  const [entries, setEntries] = useState(() => read(slot));
  const add = (entry) => setEntries((before) => {
    const text = JSON.stringify(entry);
    const next = [entry, ...before.filter((each) => JSON.stringify(each) !== text)].slice(0, MAX_ENTRIES);
    try { localStorage.setItem(slot, JSON.stringify(next)); } catch { /* private windows have no storage */ }
    return next;
  });
  const clear = () => { localStorage.removeItem(slot); setEntries([]); };
  return [entries, add, clear];
}

function read(slot) {
  try { return JSON.parse(localStorage.getItem(slot)) ?? []; } catch { return []; }
}

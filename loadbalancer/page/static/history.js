// What this browser has asked for, and what was typed. Both stay in this browser.

import { useEffect, useState } from "./vendor/preact.js";

const MAX_ENTRIES = 30;

// The last requests, newest first: [entries, add, clear].
export function useHistory(name) {
  const slot = `muster.history.${name}`;
  const [entries, setEntries] = useState(() => read(localStorage, slot) ?? []);
  const add = (entry) => setEntries((before) => {
    const text = JSON.stringify(entry);
    const next = [entry, ...before.filter((each) => JSON.stringify(each) !== text)].slice(0, MAX_ENTRIES);
    write(localStorage, slot, next);
    return next;
  });
  const clear = () => { localStorage.removeItem(slot); setEntries([]); };
  return [entries, add, clear];
}

// A state that is there again after a reload of this tab.
export function useKept(name, initial) {
  const slot = `muster.kept.${name}`;
  const [value, setValue] = useState(() => read(sessionStorage, slot) ?? initial);
  useEffect(() => write(sessionStorage, slot, value), [slot, value]);
  return [value, setValue];
}

function read(storage, slot) {
  try { return JSON.parse(storage.getItem(slot)); } catch { return null; }
}

function write(storage, slot, value) {
  try { storage.setItem(slot, JSON.stringify(value)); } catch { /* private windows have no storage */ }
}

// What a chart shows of the past of a model.

import { useEffect, useState } from "./vendor/preact.js";
import { getJson } from "./api.js";

// The past of a model over a span, with new points from the live stream at its end. A new connection loads it again.
export function usePast(model, span, points, connection) {
  const [past, setPast] = useState({ step_s: 1, times: [], columns: {} });
  useEffect(() => {
    let isGone = false;
    const load = () => getJson(`/ui/history?model=${encodeURIComponent(model)}&span=${span}`)
      .then((found) => { if (!isGone) setPast(found); }, () => {});
    load();
    const timer = span > 600 ? setInterval(load, 10000) : 0;
    return () => { isGone = true; clearInterval(timer); };
  }, [model, span, connection]);
  useEffect(() => points.listen((latest) => {
    const own = latest[model];
    if (span > 600 || !own || !own.times.length) return;
    setPast((before) => appended(before, own, span));
  }), [model, span, points]);
  return past;
}

export function appended(past, latest, span) {
  const [time] = latest.times.slice(-1);
  if (past.times.length && time <= past.times.at(-1)) return past;
  const from = past.times.findIndex((each) => each > time - span);
  const cut = from < 0 ? past.times.length : from;
  const columns = {};
  for (const [name, values] of Object.entries(latest.columns)) columns[name] = [...(past.columns[name] ?? []).slice(cut), values.at(-1)];
  return { step_s: past.step_s, times: [...past.times.slice(cut), time], columns };
}

const MEAN_S = 10;

// Counts per point as rates per second: the mean of the last 10 seconds, as single seconds jump.
export function rates(data, names) {
  const width = Math.max(Math.round(MEAN_S / data.step_s), 1), columns = {};
  for (const name of names) {
    let sum = 0;
    const counts = data.columns[name] ?? [];
    columns[name] = counts.map((count, at) => {
      sum += count - (at >= width ? counts[at - width] : 0);
      return sum / Math.min(at + 1, width) / data.step_s;
    });
  }
  return { ...data, columns };
}

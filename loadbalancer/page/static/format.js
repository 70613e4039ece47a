// Numbers and times for people.

export function seconds(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0 s";
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  if (value < 129600) return `${(value / 3600).toFixed(1)} h`;
  return `${(value / 86400).toFixed(1)} d`;
}

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

export function bytes(value) {
  if (!value) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${value >= 100 ? Math.round(value) : value.toPrecision(2)} ${units[at]}`;
}

// A time of today without the day.
export function moment(time) {
  const date = new Date(time * 1000), isToday = date.toDateString() === new Date().toDateString();
  return isToday ? clock(time) : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${clock(time).slice(0, 5)}`;
}

export const clock = (time) => new Date(time * 1000).toLocaleTimeString("en-GB");

// Requests to the server. The API key lives in this tab's memory only: it is never stored and never part of a URL.

let key = "";

export class ApiError extends Error {
  // `status` is 0 where there was no answer; `param` names the field of the request that is at fault.
  constructor(status, message, code, param) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

export const setKey = (value) => { key = value.trim(); };
export const hasKey = () => key !== "";

const headers = (extra) => (key ? { ...extra, authorization: `Bearer ${key}` } : { ...extra });

export async function request(method, path, { body, signal, headers: extra } = {}) {
  const options = { method, signal, headers: headers(extra), cache: "no-store" };
  if (body instanceof FormData) options.body = body;
  else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  }
  const response = await fetch(path, options).catch((error) => { throw inWords(error, "The server cannot be reached"); });
  if (!response.ok) throw await errorOf(response);
  return response;
}

export const getJson = async (path, options) => (await request("GET", path, options)).json();
export const postJson = async (path, body, options) => (await request("POST", path, { ...options, body })).json();

// What a browser says of a failed connection differs by browser, and says little.
const inWords = (error, message) => (error instanceof TypeError ? new ApiError(0, message, "unreachable") : error);

async function errorOf(response) {
  let message = `The server answers ${response.status} ${response.statusText}`, code = null, param = null;
  try {
    const { error } = await response.json();
    if (error && error.message) ({ message, code, param } = error);
  } catch { /* the body is no JSON: the status has to do */ }
  return new ApiError(response.status, message, code, param);
}

// Yields {event, data} of a stream of server-sent events. `data` is parsed, but for the end mark of texts.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => { throw inWords(error, "The connection to the server broke off"); });
      if (done) return;
      text += value;
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const found = parseEvent(text.slice(0, end));
        text = text.slice(end + 2);
        if (found) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseEvent(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  if (!data.length) return null;
  const text = data.join("\n");
  return { event, data: text === "[DONE]" ? null : JSON.parse(text) };
}

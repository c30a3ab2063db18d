// Asking the server: one picture as a stream of events, errors as one kind of object.

export class Refused extends Error {
  // `retryAfter`: seconds after which the same request may succeed, or null. `code`: the server's name for it.
  constructor(status, code, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

const WORDS = {
  0: "The server can't be reached. Is it still running?",
  401: "The server wants a key, or doesn't know this one.",
  429: "The queue is full.",
  503: "The server is going down or starting.",
  504: "The picture was not painted in time.",
};

function headersWith(key) {
  // A browser refuses to send such a header, with an error that looks like a broken connection.
  if (/[^!-~]/.test(key)) throw new Refused(401, "invalid_api_key", "A key has letters, digits and signs of ASCII only.");
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  return headers;
}

// Seconds of a Retry-After, which may be a number or a date; null where there is none.
export function secondsOf(retryAfter, now = Date.now()) {
  if (retryAfter === null || retryAfter.trim() === "") return null;
  const seconds = Number(retryAfter);
  if (Number.isFinite(seconds)) return Math.max(0, Math.ceil(seconds));
  const at = Date.parse(retryAfter);
  return Number.isNaN(at) ? null : Math.max(0, Math.ceil((at - now) / 1000));
}

async function refusalOf(response) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch {
    // Not ours: a proxy's page, for example. Its status says enough.
  }
  const after = [429, 503].includes(response.status) ? secondsOf(response.headers.get("Retry-After")) : null;
  const words = WORDS[response.status] ?? `The server answered ${response.status}.`;
  return new Refused(response.status, said.code ?? null, said.message ? `${words} (${said.message})` : words, after);
}

async function fetched(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "unreachable", WORDS[0]);
  }
}

export async function getJson(url, key = "") {
  const response = await fetched(url, { headers: headersWith(key), cache: "no-store" });
  if (!response.ok) throw await refusalOf(response);
  return response.json();
}

// Server-sent events of a body of bytes, as parsed JSON, one at a time.
export async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? "\n\n" : value;
      // A carriage return at the end may be half of a line's end.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        else if (line === "" && data.length) {
          const said = data.join("\n");
          data = [];
          if (said !== "[DONE]") yield JSON.parse(said);
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Paints one picture. `onDraft(event)` is called when the student is done; the promise is the final event.
export async function paint(body, key, signal, onDraft) {
  const response = await fetched("v1/images/generations", {
    method: "POST",
    headers: headersWith(key),
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusalOf(response);
  try {
    for await (const event of eventsOf(response.body)) {
      if (event.error) throw new Refused(500, event.error.code ?? null, event.error.message ?? "The picture failed.");
      if (event.type === "image_generation.partial_image") onDraft(event);
      if (event.type === "image_generation.completed") return event;
    }
  } catch (error) {
    if (error instanceof Refused || error.name === "AbortError") throw error;
    // What browsers throw when a connection breaks differs; what the server sends is JSON.
  }
  throw new Refused(0, "broken", "The connection broke before the picture was finished. Try again.");
}

// A base64 picture as a URL of this page; whoever takes it away revokes it.
export function urlOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
}

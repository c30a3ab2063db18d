// The server, as the page sees it. A vote is kept in this browser until the server has acknowledged it, and sent again and
// again until then: sent twice, it is one vote all the same.

const TOKEN = "allaprima.study.token";
const PENDING = "allaprima.study.pending";
const WAITS = [500, 1000, 2000, 4000, 8000];

export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
  get passes() { return this.status >= 500; }  // trouble of the server's, or no answer at all
}

const stored = {
  get(name) { try { return localStorage.getItem(name); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, value); } catch { /* then it lasts as long as the page */ } },
  drop(name) { try { localStorage.removeItem(name); } catch { /* as above */ } },
};
let token = null;

// From the link's fragment, which no server is sent; then it leaves the address bar.
export function findToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    stored.set(TOKEN, given);
    history.replaceState(null, "", location.pathname);
  }
  token = given ?? stored.get(TOKEN);
  return token !== null;
}

async function ask(path, options = {}) {
  let answer;
  try {
    const headers = { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...options.headers };
    answer = await fetch(path, { ...options, headers, cache: "no-store", signal: AbortSignal.timeout(20000) });
  } catch {
    throw new Refused(599, "no_connection", "No connection to the server.");
  }
  if (answer.ok) return answer;
  let error = {};
  try { error = (await answer.json()).error ?? {}; } catch { /* not ours */ }
  throw new Refused(answer.status, error.code ?? "unknown", error.message ?? `The server answered ${answer.status}.`);
}

const sleep = (ms) => new Promise((done) => {
  const timer = setTimeout(finish, ms);
  function finish() { clearTimeout(timer); removeEventListener("online", finish); done(); }
  addEventListener("online", finish);  // no need to wait any longer
});

// Until there is an answer that isn't trouble; `tell` hears of each trouble, and null when it is over.
async function insist(work, tell) {
  for (let k = 0; ; k += 1) {
    try {
      const made = await work();
      tell(null);
      return made;
    } catch (error) {
      if (!(error instanceof Refused) || !error.passes) throw error;
      tell(error);
      await sleep(WAITS[Math.min(k, WAITS.length - 1)]);
    }
  }
}

export const study = (tell) => insist(async () => (await ask("api/study")).json(), tell);
export const next = (tell) => insist(async () => (await ask("api/next")).json(), tell);
export const picture = (slot, side, tell) =>
  insist(async () => URL.createObjectURL(await (await ask(`api/slots/${slot}/${side}`)).blob()), tell);
export const skip = (slot, tell) => insist(() => ask(`api/slots/${slot}/skip`, { method: "POST" }), tell);

export async function vote(slot, answers, seconds, tell) {
  stored.set(PENDING, JSON.stringify({ token, slot, answers, seconds }));
  try {
    return await insist(() => send(slot, answers, seconds), tell);
  } finally {
    stored.drop(PENDING);
  }
}

async function send(slot, answers, seconds) {
  const answer = await ask(`api/slots/${slot}/vote`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ answers, seconds }),
  });
  return answer.json();
}

// A vote that was sent when the page was closed, and whose acknowledgement never came.
export async function sendPending(tell) {
  let pending = null;
  try { pending = JSON.parse(stored.get(PENDING) ?? "null"); } catch { /* not ours */ }
  if (!pending || pending.token !== token) return;
  try {
    await vote(pending.slot, pending.answers, pending.seconds, tell);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;  // refused: the pair is somebody else's by now
  }
}

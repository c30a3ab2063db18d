// One pair after the other. The server says which; this page remembers nothing but answers that are not sent yet.

import * as server from "./server.js";
import { $, answered, enlarge, feedback, lock, message, prepare, progress, show, trouble } from "./view.js";

const DRAFT = "allaprima.study.draft";
const ENDS = {
  done: ["Thank you!", "You have judged every pair that there is for you. You may close this page."],
  stopped: ["Thank you!", "Enough is known now, so the study has ended. Everything you sent counts."],
  failed: ["Thank you.", "The test shows that you see these pictures differently from what this study needs. You may close this page."],
};
let study = null;
let slot = null;
let answers = {};
let current = null;
let busy = false;
let told = false;  // the feedback of a practice pair is on the screen
let shown = 0;  // when this pair came
const seen = { since: 0, sum: 0 };

const names = () => study.questions.map((q) => q.name);
const seconds = () => (seen.sum + (document.hidden ? 0 : performance.now() - seen.since)) / 1000;
document.addEventListener("visibilitychange", () => {
  if (document.hidden) seen.sum += performance.now() - seen.since;
  else seen.since = performance.now();
});

function remember() {
  try { sessionStorage.setItem(DRAFT, JSON.stringify({ id: slot.id, answers, seconds: seconds() })); } catch { /* may be forbidden */ }
}

function remembered(id) {
  try {
    const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
    return draft?.id === id ? draft : null;
  } catch { return null; }
}

function changed(question, value) {
  if (busy || told) return;
  answers = { ...answers, [question]: value };
  current = names().find((n) => !answers[n]) ?? question;
  answered(answers, current, names());
  remember();
}

async function load() {
  busy = true;
  const state = await server.next(trouble);
  progress(state.progress);
  slot = state.slot;
  if (slot === null) {
    busy = false;
    const [title, text] = ENDS[state.progress.state] ?? ["A short pause", "All pairs are with others at the moment. This page looks again by itself."];
    if (!ENDS[state.progress.state]) setTimeout(() => run(load), 5000);
    message(title, text);
    return;
  }
  const sources = await Promise.all(["left", "right"].map((side) => server.picture(slot.id, side, trouble)));
  for (const [i, side] of ["left", "right"].entries()) {
    if ($(side).src.startsWith("blob:")) URL.revokeObjectURL($(side).src);
    $(side).src = sources[i];
  }
  // A browser may put off decoding (a tab in the background): that must not hold the pair back.
  await Promise.race([Promise.all(["left", "right"].map((side) => $(side).decode())), new Promise((done) => setTimeout(done, 2000))]);
  begin();
}

function begin() {
  const draft = remembered(slot.id);
  answers = draft?.answers ?? {};
  shown = performance.now();
  Object.assign(seen, { since: shown, sum: 1000 * (draft?.seconds ?? 0) });
  told = false;
  $("prompt").textContent = slot.prompt;
  current = names().find((n) => !answers[n]) ?? names().at(-1);
  feedback(null);
  lock(false);
  answered(answers, current, names());
  show("vote");
  // The button that led here is hidden now, but keeps the focus, and takes Enter, until the browser paints.
  $("vote").focus({ preventScroll: true });
  scrollTo(0, 0);
  $("vote").dataset.slot = slot.id;
  $("vote").dataset.kind = slot.kind === "training" ? "training" : "vote";  // a check looks like any other pair
  busy = false;
}

async function send() {
  if (busy) return;
  if (told) return load();
  if (names().some((n) => !answers[n])) return;
  busy = true;
  lock(true);
  const kept = await server.vote(slot.id, answers, seconds(), trouble);
  if (kept.feedback) {
    told = true;
    feedback(kept.feedback);
    busy = false;
    return;
  }
  await load();
}

// Whatever goes wrong is said, and has a button that leads on.
async function run(work) {
  try {
    await work();
  } catch (error) {
    busy = false;
    if (error.code === "picture_gone" || error.name === "EncodingError") {
      message("This pair can't be shown", "A picture of it is gone. Nothing you sent is lost.", "Another pair", () => run(async () => {
        await server.skip(slot.id, trouble);
        await load();
      }));
    } else if (error.code === "not_yours") {
      message("This pair went to somebody else", "You were away for long. Everything you had sent is kept.", "Another pair", () => run(load));
    } else if (error.status === 401 || error.status === 403) {
      message("No invitation", error.message);
    } else {
      message("Something went wrong", error.message, "Try again", () => run(load));
    }
  }
}

function welcome() {
  $("help").hidden = true;
  show("welcome");
  $("begin").focus();
}

function enter() {
  $("help").hidden = false;
  run(async () => { await server.sendPending(trouble); await load(); });
}

function keyed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("vote").hidden) return;
  if ($("large").open) {
    if (["ArrowLeft", "ArrowRight", "z", "Z"].includes(event.key)) {
      event.preventDefault();
      if (event.key.toLowerCase() === "z") $("large").close();
      else enlarge(event.key === "ArrowLeft" ? "left" : "right");
    }
    return;
  }
  const choice = study.answers["123".indexOf(event.key)];
  if ("123".includes(event.key) && choice) changed(current, choice);
  else if (event.key.toLowerCase() === "z") enlarge("left");
  else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
    const at = names().indexOf(current) + (event.key === "ArrowUp" ? -1 : 1);
    current = names()[Math.min(Math.max(at, 0), names().length - 1)];
    answered(answers, current, names());
  } else if (event.key === "Enter" && !(event.target instanceof HTMLButtonElement)) run(send);
  else return;
  event.preventDefault();
}

// The second half of a double click or tap on Send belongs to the pair before, wherever it lands on this one.
function late(event) {
  if (event.detail < 2 || performance.now() - shown > 500) return;
  event.preventDefault();
  event.stopPropagation();
}

async function start() {
  document.addEventListener("click", late, true);
  $("vote").addEventListener("submit", (event) => { event.preventDefault(); run(send); });
  for (const button of document.querySelectorAll(".picture")) button.addEventListener("click", () => enlarge(button.dataset.side));
  $("other").addEventListener("click", () => enlarge($("large").dataset.side === "left" ? "right" : "left"));
  $("close").addEventListener("click", () => $("large").close());
  $("large-picture").addEventListener("click", () => $("large").close());
  $("begin").addEventListener("click", enter);
  $("help").addEventListener("click", welcome);
  document.addEventListener("keydown", keyed);
  const invited = server.findToken();
  study = await server.study(trouble);
  prepare(study, changed);
  if (!study.compares) $("prompt-label").textContent = "Both were made from this text";
  if (invited) welcome();
  else message("No invitation", "Open the link that you were given: it holds your invitation.");
}

// A page that the browser brings back from its memory may be behind.
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
addEventListener("hashchange", () => location.reload());
run(start);

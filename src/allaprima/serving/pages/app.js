// The page: what is asked for, and what becomes of it.

import { Gallery } from "./gallery.js";
import { Refused, getJson, paint, urlOf } from "./paint.js";
import { Stage } from "./stage.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
const KEY = "allaprima.key";
const MAX_SEED = Number.MAX_SAFE_INTEGER;
const UNITS = { steps: "steps", evaluations: "evaluations", seconds: "seconds", money: "" };

const stage = new Stage();
const gallery = new Gallery(repeat);
let settings = null;
let model = null;
let working = null; // the AbortController of the picture being painted
let last = null; // the last picture that was finished
let stray = null; // the URL of a draft that no final followed
let countdown = null; // the timer of a refusal's Retry-After

const say = (text) => ($("status").textContent = text);

// Settings of this server: what the card is, what budgets mean.

async function load() {
  try {
    settings = await getJson("demo/settings");
  } catch (error) {
    complain(error, load);
    return;
  }
  calm();
  showSettings();
  if (!settings.key_needed || $("key").value) await checkKey();
}

function showSettings() {
  document.title = `allaprima: ${settings.card}`;
  $("card").textContent = `${settings.card}, ${settings.width} × ${settings.height}`;
  document.documentElement.style.setProperty("--aspect", `${settings.width} / ${settings.height}`);
  // Of few pixels each is shown; smoothing would only look like a bad picture.
  document.body.toggleAttribute("data-small", Math.max(settings.width, settings.height) <= 128);
  if (settings.prompt_chars) $("prompt").maxLength = settings.prompt_chars;
  $("prompt").placeholder = settings.examples[0] ?? "a few words";
  $("examples").replaceChildren(...settings.examples.map(example));
  $("key-part").hidden = !settings.key_needed;
  stage.setScores(settings.scores);
  showBudgets();
}

function example(prompt) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = prompt;
  button.addEventListener("click", () => {
    $("prompt").value = prompt;
    $("ask").requestSubmit();
  });
  item.append(button);
  return item;
}

async function checkKey() {
  try {
    model = (await getJson("v1/models", $("key").value)).data[0]?.id ?? null;
    if (settings?.key_needed) $("key-means").textContent = "The server knows this key. It is kept in this tab until you close it.";
  } catch (error) {
    complain(error, error.status === 401 ? null : checkKey);
  }
}

// The budget: a place in the server's table.

const row = () => settings?.budget?.table[Number($("budget").value)] ?? null;

function showBudgets() {
  const { budget } = settings;
  $("budget-part").hidden = budget === null;
  if (budget === null) {
    stage.setThreshold(settings.threshold);
    return;
  }
  const { table } = budget;
  // What was chosen stays chosen when the table comes anew.
  const chosen = $("budget").dataset.budget ?? budget.default;
  Object.assign($("budget"), { min: 0, max: table.length - 1, step: 1 });
  choose(Number(chosen));
}

function choose(budget) {
  const { table } = settings.budget;
  const gaps = table.map((r) => Math.abs(r.budget - budget));
  $("budget").value = gaps.indexOf(Math.min(...gaps));
  budgetChanged();
}

function budgetChanged() {
  const r = row();
  const unit = UNITS[settings.budget.unit] ?? settings.budget.unit;
  $("budget").dataset.budget = r.budget;
  $("budget-value").textContent = words.budgetValue(r, unit);
  $("budget-means").textContent = words.budgetMeans(r);
  $("budget").setAttribute("aria-valuetext", words.budgetValue(r, unit));
  stage.setThreshold(r.threshold);
}

// The seed: typed, or another one each time.

function seedOf() {
  const typed = $("seed").value.trim();
  if (typed === "") return crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  return Number(typed);
}

function checkSeed() {
  const typed = $("seed").value.trim();
  const fine = typed === "" || (/^[0-9]+$/.test(typed) && Number(typed) <= MAX_SEED);
  $("seed").setCustomValidity(fine ? "" : `A whole number from 0 to ${MAX_SEED}, or nothing for a new one each time.`);
}

// Painting.

function ask() {
  const body = {
    prompt: $("prompt").value,
    n: 1,
    size: `${settings.width}x${settings.height}`,
    seed: seedOf(),
    stream: true,
    partial_images: 1,
    response_format: "b64_json",
  };
  if (model !== null) body.model = model;
  if (row() !== null) body.adaptive = { budget: row().budget };
  return body;
}

function busy(controller) {
  const stopped = document.activeElement === $("cancel") && controller === null;
  working = controller;
  $("paint").setAttribute("aria-disabled", String(controller !== null));
  $("cancel").hidden = controller === null;
  if (stopped) $("prompt").focus();
}

function take(picture, event) {
  const { score, threshold, decision, seed } = event.adaptive;
  Object.assign(picture, { score: score ?? null, threshold: threshold ?? null, decision: decision ?? null });
  picture.seed = seed ?? picture.seed;
}

async function run(body) {
  calm();
  busy(new AbortController());
  stage.begin();
  if (stray !== null) URL.revokeObjectURL(stray);
  stray = null;
  intoSight();
  say("The student paints…");
  const begun = performance.now();
  const picture = {
    prompt: body.prompt, seed: body.seed, budget: body.adaptive?.budget ?? null, draftUrl: null, finalUrl: null,
    score: null, threshold: null, decision: null, draftSteps: settings.student_steps, draftSeconds: null, steps: null, seconds: null,
  };
  try {
    const event = await paint(body, $("key").value, working.signal, (draft) => drafted(picture, draft, begun));
    finished(picture, event, begun);
  } catch (error) {
    failed(error, body);
    stray = picture.draftUrl;
  } finally {
    busy(null);
  }
}

// On a phone the frames lie below the prompt: bring them into sight.
function intoSight() {
  const frames = document.querySelector(".frames").getBoundingClientRect();
  const seen = frames.top >= 0 && frames.bottom <= innerHeight;
  const calmly = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (!seen) document.querySelector(".stage").scrollIntoView({ block: "start", behavior: calmly ? "auto" : "smooth" });
}

function drafted(picture, event, begun) {
  take(picture, event);
  // A policy may ask for several drafts: the last one told is the best so far.
  if (picture.draftUrl !== null) URL.revokeObjectURL(picture.draftUrl);
  picture.draftUrl = urlOf(event.b64_json);
  picture.draftSeconds = (performance.now() - begun) / 1000;
  stage.draft(picture);
  say(`The draft is there. ${words.decision(picture).join(" ")}`);
}

function finished(picture, event, begun) {
  take(picture, event);
  const { steps, attempts, warning } = event.adaptive;
  picture.finalUrl = urlOf(event.b64_json);
  picture.steps = steps ?? null;
  // Both by this page's clock, or a final could seem to come before its draft.
  picture.seconds = (performance.now() - begun) / 1000;
  picture.draftSteps = settings.student_steps * (attempts || 1);
  last = picture;
  $("again").disabled = false;
  $("knows").hidden = !event.revised_prompt;
  $("knows").textContent = event.revised_prompt ? `This card doesn't know all these words: it painted “${event.revised_prompt}”.` : "";
  stage.finish(picture);
  gallery.add(picture);
  say([`Done: ${words.finalFacts(picture)}. Seed ${picture.seed}.`, warning].filter(Boolean).join(" "));
  refresh();
}

// The server learns how long pictures take; the slider tells what it knows now.
async function refresh() {
  try {
    settings = await getJson("demo/settings");
    const shown = stage.threshold;
    if (settings.budget !== null) showBudgets();
    stage.setThreshold(shown);
  } catch {
    // What was known before is good enough.
  }
}

function failed(error, body) {
  if (error.name === "AbortError") {
    stage.stop("Cancelled");
    say("Cancelled.");
    return;
  }
  stage.stop("Not painted");
  say("");
  const hopeless = [400, 401, 403, 404, 413].includes(error.status);
  complain(error, hopeless ? null : () => working === null && run(body));
}

function repeat(picture) {
  if (working !== null || picture === null) return;
  $("prompt").value = picture.prompt;
  $("seed").value = picture.seed;
  checkSeed();
  if (picture.budget !== null && settings.budget !== null) choose(picture.budget);
  $("ask").requestSubmit();
}

// Errors: in words, with what can be done next.

function complain(error, retry) {
  if (!(error instanceof Refused)) console.error(error);
  $("alert-text").textContent = error instanceof Refused ? error.message : `The page failed: ${error.message}`;
  $("alert-buttons").hidden = false;
  $("retry").hidden = retry === null;
  $("retry").onclick = retry;
  wait(retry === null ? 0 : (error.retryAfter ?? 0));
  if (error.status === 401) {
    $("key-part").hidden = false;
    $("key").focus();
  }
}

function wait(seconds) {
  clearInterval(countdown);
  const until = performance.now() + 1000 * seconds;
  const tick = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    $("retry").disabled = left > 0;
    $("retry").textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left > 0) return;
    clearInterval(countdown);
    if (seconds > 0) say("You can try again now.");
  };
  tick();
  if (seconds > 0) countdown = setInterval(tick, 250);
}

function calm() {
  clearInterval(countdown);
  $("alert-text").textContent = "";
  $("alert-buttons").hidden = true;
}

// Wires.

function storedKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // Storage may be forbidden: then the key lasts as long as the page.
  }
}

function keyChanged() {
  try {
    sessionStorage.setItem(KEY, $("key").value);
  } catch {
    // As above.
  }
  calm();
  checkKey();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (working === null && settings !== null) run(ask());
});
$("cancel").addEventListener("click", () => working?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("large").open) working?.abort();
});
$("budget").addEventListener("input", budgetChanged);
$("seed").addEventListener("input", checkSeed);
$("again").addEventListener("click", () => {
  $("seed").value = last.seed;
  checkSeed();
});
$("new").addEventListener("click", () => {
  $("seed").value = "";
  checkSeed();
});
$("repeat").addEventListener("click", () => repeat(last));
$("dismiss").addEventListener("click", () => {
  calm();
  $("prompt").focus();
});
$("key").value = storedKey();
$("key").addEventListener("change", keyChanged);
load();

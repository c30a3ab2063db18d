// What is said about a picture; every text of the page that depends on numbers is made here.

const DECISIONS = {
  accept: "Good enough: kept.",
  refine: "Sent to the teacher: refined.",
  regenerate: "Sent to the teacher: painted anew.",
  redraft: "Not good enough yet: the student tries again.",
};
const AT_WORK = { refine: "The teacher refines it…", regenerate: "The teacher paints it anew…", redraft: "The student tries again…" };

export const number = (x, digits = 2) => (x === null || x === undefined ? "?" : x.toFixed(digits));

export function seconds(s) {
  if (s === null || s === undefined) return null;
  if (s < 10) return `${s.toFixed(s < 1 ? 2 : 1)} s`;
  return s < 120 ? `${Math.round(s)} s` : `${Math.round(s / 60)} min`;
}

const steps = (n) => (n === null || n === undefined ? null : `${n} ${n === 1 ? "step" : "steps"}`);
const joined = (...parts) => parts.filter(Boolean).join(" · ");

// The decision, in a few words, and the comparison that led to it.
export function decision(picture) {
  const words = DECISIONS[picture.decision] ?? (picture.decision ? `Decided: ${picture.decision}.` : "Nothing was decided.");
  if (picture.score === null || picture.threshold === null) return [words, ""];
  const order = picture.score >= picture.threshold ? "reaches" : "is below";
  return [words, `Score ${number(picture.score)} ${order} the threshold ${number(picture.threshold)}.`];
}

export const teacherAtWork = (decided) => AT_WORK[decided] ?? "Finishing…";
export const isKept = (decided) => decided === "accept";

export const draftFacts = (p) => joined(steps(p.draftSteps), seconds(p.draftSeconds));
export function finalFacts(p) {
  return joined(steps(p.steps) && `${steps(p.steps)} in all`, seconds(p.seconds));
}

// What a row of the budget's table means.
export function budgetMeans(row) {
  const share = Math.round(100 * row.share);
  const time = seconds(row.seconds);
  const below = row.threshold === null || share === 0 || share === 100 ? "" : `, those below ${number(row.threshold)}`;
  return `About ${share} % of drafts go to the teacher${below}.${time ? ` About ${time} a picture.` : ""}`;
}

export const budgetValue = (row, unit) => `${Number(row.budget.toPrecision(4))} ${unit} a picture`;

export function scaleLabel(score, threshold) {
  if (score === null) return threshold === null ? "No score yet" : `Threshold ${number(threshold)}, no score yet`;
  if (threshold === null) return `The draft's score is ${number(score)}`;
  const side = score >= threshold ? "good enough" : "below it: for the teacher";
  return `The draft's score is ${number(score)}, the threshold ${number(threshold)}: ${side}`;
}

// A file's name from a prompt: letters and digits of any script.
export function fileName(picture) {
  const words = picture.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60);
  return `${words || "picture"}-${picture.seed}.png`;
}

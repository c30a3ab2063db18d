// The two frames, the scale between them, and the decision in words.

import * as words from "./words.js";

const $ = (id) => document.getElementById(id);

function frame(id, state, { url = null, alt = "", wait = "", mark = null, facts = "" } = {}) {
  const figure = $(id);
  figure.dataset.state = state;
  const [image, waiting, badge] = ["img", ".wait", ".mark"].map((s) => figure.querySelector(s));
  if (url === null) image.removeAttribute("src");
  else image.src = url;
  image.alt = alt;
  image.hidden = url === null;
  waiting.textContent = wait;
  waiting.hidden = wait === "";
  badge.hidden = mark === null;
  badge.className = `mark ${mark?.kind ?? ""}`;
  badge.textContent = mark?.text ?? "";
  figure.querySelector(".facts").textContent = facts;
}

function decisionInto(element, picture) {
  const [said, why] = picture ? words.decision(picture) : ["", ""];
  const small = document.createElement("small");
  small.textContent = why;
  element.replaceChildren(said, " ", small);
  element.dataset.decision = picture?.decision ?? "none";
}

export class Stage {
  // `scores`: a histogram of held-out drafts `{low, high, counts}`, or null.
  constructor() {
    this.scores = null;
    this.score = null;
    this.threshold = null;
  }

  setScores(scores) {
    this.scores = scores;
    const most = scores ? Math.max(1, ...scores.counts) : 1;
    $("scale").querySelector(".bars").replaceChildren(
      ...(scores?.counts ?? []).map((count) => {
        const bar = document.createElement("span");
        bar.style.setProperty("--part", count / most);
        return bar;
      }),
    );
    this.drawScale();
  }

  // The threshold of the next picture, while the slider moves.
  setThreshold(threshold) {
    this.threshold = threshold;
    this.drawScale();
  }

  drawScale() {
    const { score, threshold, scores } = this;
    const known = [score, threshold].filter((x) => x !== null);
    $("scale").hidden = !known.length;
    if (!known.length) return;
    const low = Math.min(scores?.low ?? 0, ...known);
    const high = Math.max(scores?.high ?? 1, ...known);
    const at = (x) => `${(100 * (x - low)) / (high - low || 1)}%`;
    const place = (selector, x, text) => {
      const mark = $("scale").querySelector(selector);
      mark.hidden = x === null;
      if (x === null) return;
      mark.style.setProperty("--at", at(x));
      if (text) mark.querySelector("b").textContent = text;
    };
    place(".low", threshold, null);
    place(".threshold", threshold, `threshold ${words.number(threshold)}`);
    place(".score", score, `this draft ${words.number(score)}`);
    this.drawBars(low, high);
    $("scale").setAttribute("aria-label", words.scaleLabel(score, threshold));
  }

  // Bars lie where their scores do, also on a scale that a far draft has stretched.
  drawBars(low, high) {
    if (!this.scores) return;
    const bars = $("scale").querySelector(".bars");
    const width = (this.scores.high - this.scores.low) / this.scores.counts.length;
    bars.style.marginLeft = `${(100 * (this.scores.low - low)) / (high - low)}%`;
    bars.style.marginRight = `${(100 * (high - this.scores.high)) / (high - low)}%`;
    [...bars.children].forEach((bar, k) => {
      const middle = this.scores.low + (k + 0.5) * width;
      bar.classList.toggle("below", this.threshold !== null && middle < this.threshold);
    });
  }

  begin() {
    this.score = null;
    frame("draft", "working", { wait: "The student paints…" });
    frame("final", "waiting", { wait: "Waiting for the draft" });
    decisionInto($("decision"), null);
    $("done").hidden = true;
    this.drawScale();
  }

  draft(picture) {
    const alt = `Draft of: ${picture.prompt}`;
    frame("draft", "done", { url: picture.draftUrl, alt, mark: { text: "draft" }, facts: words.draftFacts(picture) });
    const kept = words.isKept(picture.decision);
    const wait = kept ? "" : words.teacherAtWork(picture.decision);
    frame("final", "working", { url: picture.draftUrl, alt: "", wait });
    this.decided(picture);
  }

  decided(picture) {
    this.score = picture.score;
    if (picture.threshold !== null) this.threshold = picture.threshold;
    decisionInto($("decision"), picture);
    this.drawScale();
  }

  finish(picture) {
    const kept = words.isKept(picture.decision);
    if (picture.draftUrl === null) frame("draft", "empty", { wait: "No draft: the teacher was asked at once." });
    const mark = kept ? { text: "kept", kind: "kept" } : { text: "teacher", kind: "teacher" };
    const alt = `${picture.prompt}, ${kept ? "the draft kept as it is" : "finished by the teacher"}`;
    frame("final", "done", { url: picture.finalUrl, alt, mark, facts: words.finalFacts(picture) });
    this.decided(picture);
    $("download").href = picture.finalUrl;
    $("download").download = words.fileName(picture);
    $("done").hidden = false;
  }

  // Nothing more will come: what is there stays, what was waited for goes.
  stop(why) {
    for (const id of ["draft", "final"]) {
      if ($(id).dataset.state !== "done") frame(id, "empty", { wait: why });
    }
  }
}

export { decisionInto };

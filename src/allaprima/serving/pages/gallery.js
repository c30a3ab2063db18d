// The pictures of this session: small ones in a row, one large in a dialog.

import { decisionInto } from "./stage.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
const MOST = 60; // Pictures kept: each is a file in this page's memory.

export class Gallery {
  // `repeat(picture)` is called when one is to be painted again.
  constructor(repeat) {
    this.pictures = []; // newest first
    this.shown = null;
    $("close").addEventListener("click", () => $("large").close());
    $("earlier").addEventListener("click", () => this.move(1));
    $("later").addEventListener("click", () => this.move(-1));
    $("large-repeat").addEventListener("click", () => {
      const picture = this.shown;
      $("large").close();
      repeat(picture);
    });
    $("large").addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") this.move(1);
      if (event.key === "ArrowLeft") this.move(-1);
    });
    // A click beside the dialog's content is one on the dialog itself.
    $("large").addEventListener("click", (event) => {
      const box = $("large").getBoundingClientRect();
      const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
      if (event.target === $("large") && !inside) $("large").close();
    });
  }

  add(picture) {
    this.pictures.unshift(picture);
    $("gallery").prepend(this.thumb(picture));
    $("none").hidden = true;
    for (const old of this.pictures.splice(MOST)) {
      $("gallery").lastElementChild.remove();
      for (const url of [old.draftUrl, old.finalUrl]) if (url !== null) URL.revokeObjectURL(url);
    }
  }

  thumb(picture) {
    const [item, button, image, caption] = ["li", "button", "img", "span"].map((name) => document.createElement(name));
    button.type = "button";
    button.className = "thumb";
    button.dataset.decision = picture.decision ?? "none";
    image.src = picture.finalUrl;
    image.alt = "";
    caption.textContent = picture.prompt;
    button.append(image, caption);
    button.setAttribute("aria-label", `${picture.prompt}. ${words.decision(picture)[0]} Show it large`);
    button.title = picture.prompt;
    button.addEventListener("click", () => this.show(picture));
    item.append(button);
    return item;
  }

  show(picture) {
    this.shown = picture;
    $("large-title").textContent = picture.prompt;
    const draft = $("large-draft");
    draft.closest("figure").hidden = picture.draftUrl === null;
    if (picture.draftUrl !== null) draft.src = picture.draftUrl;
    draft.alt = `Draft of: ${picture.prompt}`;
    $("large-draft-facts").textContent = words.draftFacts(picture);
    $("large-final").src = picture.finalUrl;
    $("large-final").alt = `Final of: ${picture.prompt}`;
    $("large-final-facts").textContent = words.finalFacts(picture);
    decisionInto($("large-decision"), picture);
    const budget = picture.budget === null ? "" : `, budget ${picture.budget}`;
    $("large-seed").textContent = `Seed ${picture.seed}${budget}`;
    $("large-download").href = picture.finalUrl;
    $("large-download").download = words.fileName(picture);
    const at = this.pictures.indexOf(picture);
    $("earlier").disabled = at === this.pictures.length - 1;
    $("later").disabled = at === 0;
    if (!$("large").open) $("large").showModal();
  }

  move(by) {
    const next = this.pictures[this.pictures.indexOf(this.shown) + by];
    if (!next) return;
    this.show(next);
    // The button that was pressed may have become one that can't be.
    if (document.activeElement === document.body || document.activeElement.disabled) $("close").focus();
  }
}

// What is on the screen. All text goes in as text: a prompt with markup in it is shown, never run.

export const $ = (id) => document.getElementById(id);
const WORDS = { left: "Left", tie: "Equal", right: "Right", similar: "Same", unsure: "Unsure", different: "Different" };
const STAGES = { training: "Practice", qualification: "Test" };

export function show(view) {
  document.body.dataset.view = view;
  for (const id of ["message", "welcome", "vote"]) $(id).hidden = id !== view;
}

export function message(title, text, button = null, action = null) {
  $("message-title").textContent = title;
  $("message-text").textContent = text;
  $("message-button").hidden = button === null;
  $("message-button").textContent = button ?? "";
  $("message-button").onclick = action;
  show("message");
  (button === null ? $("message") : $("message-button")).focus();
}

export function trouble(error) {
  $("alert").hidden = error === null;
  if (error) $("alert").textContent = `${error.message} Your answers are kept here and sent as soon as it works.`;
}

function element(kind, properties = {}, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

// Once: the study's own words, and a row of choices a question.
export function prepare(study, changed) {
  $("name").textContent = document.title = study.name;
  $("about").textContent = study.about;
  for (const q of study.questions) $("asked").append(element("li", {}, element("strong", { textContent: q.title }), `: ${q.ask}`));
  for (const q of study.questions) {
    const choices = element("div", { className: "choices" });
    for (const value of study.answers) {
      const input = element("input", { type: "radio", name: q.name, value });
      input.addEventListener("change", () => changed(q.name, value));
      choices.append(element("label", {}, input, element("span", { textContent: WORDS[value] })));
    }
    const legend = element("legend", { textContent: q.title }, element("small", { textContent: ` ${q.ask}` }));
    const set = element("fieldset", {}, legend, choices);
    set.dataset.question = q.name;
    $("questions").append(set);
  }
}

export function progress(p) {
  const part = p.of ? p.votes / p.of : 0;
  const first = p.training_left + p.qualification_left;
  $("stage").textContent = STAGES[p.state] ? `${STAGES[p.state]}: ${first} to go` : `${p.votes} of ${p.of}`;
  $("progress").hidden = false;
  $("progress").style.setProperty("--part", part);
  $("progress").setAttribute("aria-valuemax", p.of);
  $("progress").setAttribute("aria-valuenow", p.votes);
}

export function answered(answers, current, names) {
  for (const set of document.querySelectorAll("fieldset")) {
    set.classList.toggle("current", set.dataset.question === current);
    for (const input of set.querySelectorAll("input")) input.checked = answers[set.dataset.question] === input.value;
  }
  const left = names.filter((n) => !answers[n]).length;
  $("send").setAttribute("aria-disabled", String(left > 0));
  $("left-to-answer").textContent = left ? `${left} ${left === 1 ? "question" : "questions"} to answer` : "";
}

export function lock(locked) {
  for (const input of document.querySelectorAll("fieldset input")) input.disabled = locked;
}

// After a practice pair: what would have been right.
export function feedback(f) {
  for (const label of document.querySelectorAll(".choices label")) {
    const input = label.firstChild;
    label.classList.toggle("due", f !== null && f.expected[input.name] === input.value);
  }
  $("feedback").hidden = f === null;
  $("feedback").textContent = f === null ? "" : `${f.right ? "Right." : "Not quite: what was due is framed."} ${f.why}`;
  $("send").textContent = f === null ? "Send" : "Next pair";
  if (f !== null) {
    $("send").setAttribute("aria-disabled", "false");
    $("left-to-answer").textContent = "";
    $("send").scrollIntoView({ block: "nearest" });
  }
}

const SIDES = { left: "Left picture", right: "Right picture" };
export function enlarge(side) {
  $("large").dataset.side = side;
  $("large-title").textContent = SIDES[side];
  $("large-picture").src = $(side).src;
  $("large-picture").alt = SIDES[side];
  if (!$("large").open) $("large").showModal();
}

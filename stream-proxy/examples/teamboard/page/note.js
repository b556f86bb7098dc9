// One note on the board: how it looks, and how it is moved, edited, coloured and deleted, by pointer and by keyboard.

import { el, icon } from "./dom.js";

/** The colours, as the database knows them. */
export const COLOURS = ["yellow", "pink", "blue", "green", "violet", "grey"];

/** The size of a note when a place for it is sought; it grows with its text. */
export const [WIDTH, HEIGHT] = [164, 132];

/** The edge of the board; the database has the same limit. */
const EDGE = 4000 - WIDTH;

/** How far an arrow key moves a note, alone and with Shift. */
const [STEP, BIG_STEP] = [8, 48];

/** How far the pointer goes before a press is a drag. */
const SLOP = 4;

/** How long one sees who changed a note, in milliseconds. */
const TAG_TIME = 1800;

export class NoteView {
  /** `act` has the functions `edit(patch)` and `remove()`. */
  constructor(note, act, label) {
    this.act = act;
    this.label = label;
    this.text = el("p", { class: "note-text" });
    this.tag = el("span", { class: "note-tag", "aria-hidden": "true" });
    this.swatches = COLOURS.map((colour, i) =>
      el("button", { class: `swatch ${colour}`, "aria-label": `${colour} (${i + 1})`, onclick: () => act.edit({ colour }) }));
    this.tools = el("div", { class: "note-tools", role: "toolbar", "aria-label": "Note" },
      el("div", { class: "swatches" }, this.swatches),
      el("button", { class: "icon-button", "aria-label": "Edit (Enter)", onclick: () => this.startEditing() }, icon("pencil")),
      el("button", { class: "icon-button", "aria-label": "Delete (Delete)", onclick: () => act.remove() }, icon("bin")));
    this.element = el("article", { class: "note", tabIndex: 0, role: "group", "data-note": note.id }, this.text, this.tag, this.tools);
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("focusin", () => this.#placeTools());
    this.element.addEventListener("dblclick", (event) => {
      if (!event.target.closest(".note-tools")) this.startEditing();
    });
    this.element.addEventListener("pointerdown", (event) => this.#press(event));
    this.update(note, null);
  }

  /** Shows the note's state; `by` is the person who changed it, if that was somebody else. */
  update(note, by) {
    this.note = note;
    const { element } = this;
    element.style.setProperty("--x", `${note.x}px`);
    element.style.setProperty("--y", `${note.y}px`);
    for (const colour of COLOURS) element.classList.toggle(colour, colour === note.colour);
    this.swatches.forEach((swatch, i) => swatch.setAttribute("aria-pressed", String(COLOURS[i] === note.colour)));
    this.text.textContent = note.body;
    this.text.classList.toggle("empty", note.body === "");
    element.setAttribute("aria-label", this.label(note));
    if (by) {
      this.tag.textContent = by.name;
      element.style.setProperty("--person", by.colour);
      element.classList.add("touched");
      clearTimeout(this.tagTimer);
      this.tagTimer = setTimeout(() => element.classList.remove("touched"), TAG_TIME);
    }
  }

  startEditing() {
    if (this.field) return;
    const { body } = this.note;
    const field = el("textarea", { class: "note-text", value: body, maxLength: 1000, "aria-label": "Text of the note" });
    const fit = () => {
      field.style.height = "auto";
      field.style.height = `${field.scrollHeight}px`;
    };
    const finish = (save) => {
      if (!this.field) return;
      const value = field.value.trim();
      this.field = null;
      const focused = field === document.activeElement;
      field.replaceWith(this.text);
      if (focused) this.element.focus();
      if (save && value !== body) this.act.edit({ body: value });
    };
    field.addEventListener("input", fit);
    field.addEventListener("blur", () => finish(true));
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") finish(false);
      else if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        finish(true);
      }
    });
    this.field = field;
    this.text.replaceWith(field);
    fit();
    field.focus();
  }

  // Where there is no room below or to the right, the tools are above or to the left.
  #placeTools() {
    const note = this.element.getBoundingClientRect();
    const room = this.element.closest(".viewport").getBoundingClientRect();
    const { offsetWidth, offsetHeight } = this.tools;
    this.tools.classList.toggle("leftwards", note.left + offsetWidth > room.right);
    this.tools.classList.toggle("above", note.bottom + offsetHeight + 12 > room.bottom);
  }

  #key(event) {
    if (event.target !== this.element || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = event.shiftKey ? BIG_STEP : STEP;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[event.key]) {
      const [dx, dy] = moves[event.key];
      this.act.edit(within(this.note.x + dx, this.note.y + dy));
      this.element.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else if (event.key === "Enter" || event.key === "F2") this.startEditing();
    else if (event.key === "Delete" || event.key === "Backspace") this.act.remove();
    else if (COLOURS[event.key - 1]) this.act.edit({ colour: COLOURS[event.key - 1] });
    else return;
    event.preventDefault();
  }

  #press(event) {
    if (event.button !== 0 || this.field || event.target.closest(".note-tools")) return;
    const { element } = this;
    const from = { x: event.clientX, y: event.clientY };
    const at = { x: this.note.x, y: this.note.y };
    element.setPointerCapture(event.pointerId);
    const move = (moved) => {
      const [dx, dy] = [moved.clientX - from.x, moved.clientY - from.y];
      if (!element.classList.contains("dragged") && Math.hypot(dx, dy) < SLOP) return;
      element.classList.add("dragged");
      this.act.edit(within(at.x + dx, at.y + dy));
    };
    const end = () => {
      element.classList.remove("dragged");
      this.#placeTools();
      element.removeEventListener("pointermove", move);
      element.removeEventListener("pointerup", end);
      element.removeEventListener("pointercancel", end);
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerup", end);
    element.addEventListener("pointercancel", end);
  }
}

function within(x, y) {
  const clamp = (value) => Math.round(Math.min(Math.max(value, 0), EDGE));
  return { x: clamp(x), y: clamp(y) };
}

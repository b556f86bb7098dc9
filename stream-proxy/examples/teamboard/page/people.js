// People: their faces, the sign-in, and who is on a board.

import { api } from "./api.js";
import { el, icon, toast } from "./dom.js";

/** A round badge with a person's initial. */
export function face(person, { here = null } = {}) {
  const badge = el("span", { class: "face", "aria-hidden": "true" }, person.name.slice(0, 1));
  badge.style.setProperty("--person", person.colour);
  if (here !== null) badge.classList.add(here ? "here" : "away");
  return badge;
}

/** The development sign-in: pick who you are. */
export function signInView(people, signedIn) {
  const pick = async (person) => {
    try {
      await api("POST", "session", { person: person.id });
      signedIn();
    } catch (error) {
      toast(error.message);
    }
  };
  return el("main", { class: "sign-in" },
    el("h1", {}, "Teamboard"),
    el("p", {}, "Who are you? This is a demonstration: pick a person, and open a second window as somebody else."),
    el("ul", { class: "people" }, people.map((person) =>
      el("li", {}, el("button", { class: "person", onclick: () => pick(person) }, face(person), person.name)))));
}

/** Who is on a board, with a way to invite, to remove and to leave. */
export function membersDialog({ board, me, people, members, here }) {
  const dialog = el("dialog", { class: "members", "aria-labelledby": "members-title" });
  const act = async (method, path, body) => {
    try {
      await api(method, `boards/${board.id}/members${path}`, body);
    } catch (error) {
      toast(error.status === 403 || error.status === 404 ? "Only the owner may do that." : error.message);
    }
  };

  function render() {
    const others = people.filter((person) => !members().some((member) => member.id === person.id));
    const choice = el("select", { id: "invite", class: "field" }, others.map((person) => el("option", { value: person.id }, person.name)));
    const row = (person) => {
      const owner = person.id === board.owner_id;
      const may = !owner && (me.id === board.owner_id || me.id === person.id);
      const role = [owner && "owner", person.id === me.id && "you", here().has(person.id) && "here now"].filter(Boolean).join(", ");
      const label = person.id === me.id ? "Leave" : "Remove";
      return el("li", { "data-person": person.id }, face(person, { here: here().has(person.id) }), el("span", {}, person.name),
        el("small", {}, role),
        may ? el("button", { class: "plain-button", "aria-label": `${label} ${person.name}`, onclick: () => act("DELETE", `/${person.id}`) }, label) : null);
    };
    const invite = el("form", { class: "invite", onsubmit: (event) => {
      event.preventDefault();
      act("POST", "", { person: Number(choice.value) });
    } }, el("label", { htmlFor: "invite" }, "Invite"), choice, el("button", { class: "button" }, "Add to board"));
    const title = el("div", { class: "dialog-title" }, el("h2", { id: "members-title" }, "Members"),
      el("button", { class: "icon-button", "aria-label": "Close", onclick: () => dialog.close() }, icon("cross")));
    const focused = dialog.contains(document.activeElement);
    dialog.replaceChildren(title, el("ul", { class: "people" }, members().map(row)), ...(others.length ? [invite] : []));
    // What had the focus may be gone.
    if (focused) dialog.querySelector("select, button")?.focus();
  }

  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  return { dialog, render };
}

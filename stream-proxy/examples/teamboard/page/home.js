// All boards of a person, each with a small picture that moves when its notes do.

import { api } from "./api.js";
import { el, icon, toast } from "./dom.js";
import { face } from "./people.js";
import { openStream } from "./stream.js";

/** Streams have a limit of topics; boards beyond it stand still here. */
const LIVE_BOARDS = 60;

/** How much smaller a picture is than its board. */
const SCALE = 0.2;

export async function homeView({ me, people, events, navigate, go, signOut }) {
  let boards = [];
  let stream = null;
  let closed = false;
  const list = el("ul", { class: "cards" });
  const field = el("input", { class: "field", id: "new-board", maxLength: 80, required: true, placeholder: "Retrospective, garden party, …" });
  const create = async (event) => {
    event.preventDefault();
    try {
      const board = await api("POST", "boards", { title: field.value.trim() });
      go(`/boards/${board.id}`);
    } catch (error) {
      toast(error.message);
    }
  };
  const root = el("div", { class: "home" },
    el("header", { class: "bar" },
      el("h1", { class: "brand" }, "Teamboard"),
      el("div", { class: "bar-end" }, face(me), el("span", {}, me.name), el("button", { class: "button quiet", onclick: signOut }, "Sign out"))),
    el("main", {},
      el("form", { class: "new-board", onsubmit: create },
        el("label", { htmlFor: "new-board" }, "New board"),
        el("div", { class: "row" }, field, el("button", { class: "button" }, icon("plus"), "Create"))),
      el("h2", {}, "Your boards"), list));

  function card({ board, notes, members }) {
    const picture = el("div", { class: "picture", "aria-hidden": "true" }, notes.map((note) => {
      const mini = el("span", { class: `mini ${note.colour}` });
      mini.style.setProperty("--x", `${note.x * SCALE}px`);
      mini.style.setProperty("--y", `${note.y * SCALE}px`);
      return mini;
    }));
    const count = notes.length === 1 ? "1 note" : `${notes.length} notes`;
    return el("li", { "data-board": board.id },
      el("a", { class: "card", href: `/boards/${board.id}`, onclick: navigate }, picture,
        el("span", { class: "card-title" }, board.title),
        el("span", { class: "card-foot" }, el("span", {}, count),
          el("span", { class: "faces", role: "img", "aria-label": members.map((member) => member.name).join(", ") }, members.map((member) => face(member))))));
  }

  function show() {
    const focused = document.activeElement?.closest?.("[data-board]")?.dataset.board;
    list.replaceChildren(...boards.map(card));
    if (boards.length === 0) list.append(el("li", { class: "empty" }, "None yet. Create one, or ask somebody to invite you."));
    if (focused) list.querySelector(`[data-board="${focused}"] a`)?.focus();
  }

  // The article's way: the event names what changed, and we fetch it. One fetch for each thing at a time.
  const fetching = new Map();
  async function refresh(key, fetchOne) {
    if (fetching.has(key)) return void fetching.set(key, true);
    do {
      fetching.set(key, false);
      await fetchOne().catch(() => {});
    } while (fetching.get(key) && !closed);
    fetching.delete(key);
    if (!closed) show();
  }

  async function refreshNote(id) {
    const note = await api("GET", `notes/${id}`).catch((error) => error);
    for (const entry of boards) {
      const others = entry.notes.filter((known) => known.id !== id);
      if (note.board_id === entry.board.id) entry.notes = [...others, note];
      else if (note.status === 404) entry.notes = others;
    }
  }

  async function refreshBoard(id) {
    const fresh = await api("GET", `boards/${id}`).catch((error) => error);
    if (fresh.board) boards = boards.map((entry) => (entry.board.id === id ? fresh : entry));
  }

  let turn = 0;
  async function load() {
    const mine = ++turn;
    stream?.close();
    const fresh = await api("GET", "boards");
    if (closed || mine !== turn) return;
    boards = fresh.boards;
    show();
    stream = openStream({
      base: events,
      path: "/events",
      topics: [`people_${me.id}`, ...boards.slice(0, LIVE_BOARDS).map((entry) => `boards_${entry.board.id}`)],
      position: fresh.position,
      handlers: {
        changed({ change }) {
          if (change.board_item) refresh(change.board_item, () => refreshNote(change.board_item));
          if (change.board) refresh(change.board, () => refreshBoard(change.board));
        },
        member: () => {},
        // Invited or removed: other boards, other topics.
        membership: () => again(),
      },
      onState: () => {},
      onReset: again,
      async onRefused() {
        again();
        return false;
      },
    });
  }

  function again() {
    if (!closed) load().catch(() => setTimeout(again, 2_000));
  }

  document.title = "Teamboard";
  await load();
  return {
    root,
    close() {
      closed = true;
      stream?.close();
    },
  };
}

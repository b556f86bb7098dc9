// All boards of a person, each with a small picture that moves when its notes do.

import { api } from "./api.js";
import { el, icon, toast } from "./dom.js";
import { face } from "./people.js";
import { live } from "./tidings-client.js";

/** Streams have a limit of topics; the oldest boards beyond it are not shown here. */
const LIVE_BOARDS = 60;

/** How much smaller a picture is than its board. */
const SCALE = 0.2;

export function homeView({ me, people, events, navigate, go, signOut }) {
  const person = (id) => people.find((known) => known.id === id);
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

  function show(boards) {
    const focused = document.activeElement?.closest?.("[data-board]")?.dataset.board;
    list.replaceChildren(...boards.map(card));
    if (boards.length === 0) list.append(el("li", { class: "empty" }, "None yet. Create one, or ask somebody to invite you."));
    if (focused) list.querySelector(`[data-board="${focused}"] a`)?.focus();
  }

  // One list has our boards. The other has what is on them, and is opened again when our boards change.
  const options = { key: { board_members: ["board_id", "person_id"] }, credentials: "include", share: String(me.id) };
  const url = `${events}/events`;
  const mine = live(url, { ...options, topics: [`people_${me.id}`] });
  let [boards, topics] = [null, null];

  function follow(memberships) {
    if (mine.state !== "live") return;
    const ids = memberships.map((row) => row.board_id).sort((a, b) => a - b).slice(-LIVE_BOARDS);
    const wanted = ids.map((id) => `boards_${id}`);
    if (String(wanted) === String(topics)) return;
    topics = wanted;
    boards?.close();
    boards = topics.length > 0 ? live(url, { ...options, topics }) : null;
    if (!boards) return show([]);
    boards.subscribe(() => boards.state === "live" && show(boards.table("boards").map((board) => ({
      board,
      notes: boards.table("board_items").filter((note) => note.board_id === board.id),
      members: boards.table("board_members").filter((row) => row.board_id === board.id).map((row) => person(row.person_id)),
    }))));
  }

  document.title = "Teamboard";
  mine.subscribe(follow);
  return {
    root,
    close() {
      mine.close();
      boards?.close();
    },
  };
}

// A board: its notes, its people, and its stream.

import { api, ApiError } from "./api.js";
import { announce, el, icon, toast } from "./dom.js";
import { COLOURS, HEIGHT, NoteView, WIDTH } from "./note.js";
import { Notes } from "./notes.js";
import { face, membersDialog } from "./people.js";
import { live } from "./tidings-client.js";

/** How often we look who is here, in milliseconds. */
const LOOK_AROUND = 2_000;

/** The free space around the notes, in pixels. */
const MARGIN = 240;

const STATES = {
  connecting: "Reconnecting…",
  live: "Live",
  offline: "Offline",
  denied: "No access",
};

/** Shows a board. `leave(message)` is called when the person may not see it any more. */
export async function boardView(id, { me, people, events, navigate, leave }) {
  const list = live(`${events}/api/boards/${id}/events`, {
    topics: [`here_${id}_${me.id}`],
    key: { board_members: ["board_id", "person_id"] },
    credentials: "include",
    share: String(me.id),
  });
  await new Promise((resolve) => list.subscribe(() => list.state !== "connecting" && resolve()));
  let [board] = list.table("boards");
  if (!board) {
    list.close();
    throw new ApiError(list.error?.status === 403 ? 404 : list.error?.status ?? 0, list.error?.message);
  }
  let here = new Set([me.id]);
  let members = [];
  const views = new Map();
  const person = (personId) => people.find((known) => known.id === personId);

  // The page.
  const heading = el("h1", { class: "hidden" }, board.title);
  const title = el("input", { class: "board-title", value: board.title, maxLength: 80, "aria-label": "Title of the board", onchange: rename });
  title.addEventListener("keydown", (event) => {
    if (event.key === "Escape") title.value = board.title;
    if (event.key === "Enter" || event.key === "Escape") title.blur();
  });
  const state = el("p", { class: "state", role: "status" });
  const faces = el("span", { class: "faces", role: "img" });
  const dialog = membersDialog({ board, me, people, members: () => members, here: () => here });
  const membersButton = el("button", { class: "button quiet", "aria-label": "Members", "aria-haspopup": "dialog", onclick: () => { dialog.render(); dialog.dialog.showModal(); } },
    icon("people"), el("span", { class: "wide" }, "Members"));
  const removeButton = el("button", { class: "button quiet danger", "aria-label": "Delete board", onclick: removeBoard }, icon("bin"), el("span", { class: "wide" }, "Delete board"));
  const surface = el("div", { class: "surface" });
  const viewport = el("main", { class: "viewport", tabIndex: 0, "aria-label": "Notes" }, surface);
  const addButton = el("button", { class: "button add", onclick: () => addNote() }, icon("plus"), "New note", el("kbd", { class: "wide" }, "N"));
  const root = el("div", { class: "board" },
    el("header", { class: "bar" },
      el("a", { class: "icon-button", href: "/", "aria-label": "All boards", onclick: navigate }, icon("back")),
      heading, title, state,
      el("div", { class: "bar-end" }, faces, membersButton, me.id === board.owner_id ? removeButton : null)),
    viewport, addButton, dialog.dialog);

  surface.addEventListener("dblclick", (event) => {
    if (event.target !== surface) return;
    addNote({ x: Math.max(0, Math.round(event.offsetX - WIDTH / 2)), y: Math.max(0, Math.round(event.offsetY - 30)) });
  });
  const shortcut = (event) => {
    const typing = event.target.closest("input, textarea, select, dialog");
    if (event.key.toLowerCase() !== "n" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    addNote();
  };
  addEventListener("keydown", shortcut);

  // The notes.
  const notes = new Notes(id, {
    changed(noteId, note, by) {
      const other = by !== null && by !== me.id ? person(by) : null;
      const shown = views.get(noteId);
      if (!note) {
        if (shown?.element.contains(document.activeElement)) viewport.focus({ preventScroll: true });
        shown?.element.remove();
        views.delete(noteId);
      } else if (shown) {
        shown.update(note, other);
      } else {
        const act = { edit: (patch) => notes.edit(noteId, patch), remove: () => removeNote(noteId) };
        const created = new NoteView(note, act, describe);
        views.set(noteId, created);
        surface.append(created.element);
        if (other) {
          created.update(note, other);
          announce(`${other.name} added a note`);
        }
      }
      grow();
    },
    failed: (error) => toast(error.message),
  });

  function describe(note) {
    return `${note.body || "Empty note"}, ${note.colour}`;
  }

  function grow() {
    let [width, height] = [0, 0];
    for (const { note } of views.values()) {
      width = Math.max(width, note.x + WIDTH + MARGIN);
      height = Math.max(height, note.y + HEIGHT + MARGIN);
    }
    surface.style.minWidth = `${width}px`;
    surface.style.minHeight = `${height}px`;
  }

  function addNote(place = freePlace()) {
    const colour = COLOURS[notes.all().length % COLOURS.length];
    const noteId = notes.add({ ...place, colour });
    const added = views.get(noteId);
    added.element.scrollIntoView({ block: "nearest", inline: "nearest" });
    added.startEditing();
  }

  // The first place in sight where a note covers no other, else somewhere in the middle.
  function freePlace() {
    const taken = notes.all();
    const free = (x, y) => taken.every((note) => Math.abs(note.x - x) > WIDTH || Math.abs(note.y - y) > HEIGHT);
    const { scrollLeft, scrollTop, clientWidth, clientHeight } = viewport;
    for (let y = scrollTop + 24; y + HEIGHT < scrollTop + clientHeight; y += 24) {
      for (let x = scrollLeft + 24; x + WIDTH < scrollLeft + clientWidth; x += 24) {
        if (free(x, y)) return { x: Math.round(x), y: Math.round(y) };
      }
    }
    return { x: Math.round(scrollLeft + clientWidth / 3 + Math.random() * 60), y: Math.round(scrollTop + clientHeight / 3 + Math.random() * 60) };
  }

  function removeNote(noteId) {
    const was = notes.remove(noteId);
    if (!was) return;
    const { body, colour, x, y } = was;
    toast("Note deleted", { label: "Undo", run: () => views.get(notes.add({ body, colour, x, y }))?.element.focus() });
  }

  // The board itself and its people.
  async function rename() {
    const value = title.value.trim();
    if (value === "" || value === board.title) return void (title.value = board.title);
    try {
      await api("PATCH", `boards/${id}`, { title: value });
    } catch (error) {
      title.value = board.title;
      toast(error.message);
    }
  }

  async function removeBoard() {
    if (!confirm(`Delete “${board.title}” and all its notes?`)) return;
    try {
      await api("DELETE", `boards/${id}`);
      leave(`“${board.title}” is deleted.`);
    } catch (error) {
      toast(error.message);
    }
  }

  function showBoard() {
    heading.textContent = board.title;
    if (title !== document.activeElement) title.value = board.title;
    document.title = `${board.title} · Teamboard`;
  }

  function showPeople() {
    const away = members.filter((member) => !here.has(member.id));
    const present = members.filter((member) => here.has(member.id));
    faces.replaceChildren(...[...present, ...away].map((member) => face(member, { here: here.has(member.id) })));
    faces.setAttribute("aria-label", `Here now: ${present.map((member) => member.name).join(", ")}`);
    if (dialog.dialog.open) dialog.render();
  }

  async function lookAround() {
    if (document.hidden) return;
    try {
      here = new Set([...(await api("GET", `boards/${id}/present`)), me.id]);
      if (!isClosed) showPeople();
    } catch (error) {
      if (error.status === 404) lost();
    }
  }
  const looking = setInterval(lookAround, LOOK_AROUND);
  document.addEventListener("visibilitychange", lookAround);

  function lost() {
    if (!isClosed) leave(`“${board.title}” is gone, or you are no longer a member.`);
  }

  function show() {
    const name = list.state === "offline" && navigator.onLine ? "connecting" : list.state;
    state.className = `state ${name}`;
    state.textContent = STATES[name];
    // The backend knows whether we are out, or only have to sign in again.
    if (name === "denied") return lookAround();
    const ids = list.table("board_members").map((row) => row.person_id);
    if (list.table("boards").length === 0 || !ids.includes(me.id)) return lost();
    [board] = list.table("boards");
    showBoard();
    const now = ids.map(person).sort((a, b) => a.name.localeCompare(b.name));
    if (String(now.map((member) => member.id)) !== String(members.map((member) => member.id))) {
      members = now;
      showPeople();
    }
    notes.show(list.table("board_items"));
  }

  let isClosed = false;
  list.subscribe(show);
  lookAround();
  return {
    root,
    close() {
      isClosed = true;
      list.close();
      notes.close();
      clearInterval(looking);
      removeEventListener("keydown", shortcut);
      document.removeEventListener("visibilitychange", lookAround);
    },
  };
}

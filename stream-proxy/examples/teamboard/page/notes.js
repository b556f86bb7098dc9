// The notes of a board: what the server says, and over it what was done here and is still on its way there. No DOM.

import { api } from "./api.js";

/** How long a change waits to be sent again when there is no connection, in milliseconds. */
const RETRY = 2_000;

export class Notes {
  #board;
  #changed;
  #failed;
  #isFirst = true;
  #notes = new Map();
  #gone = new Set();
  #closed = false;

  /** `changed(id, note, by)` is called with each new state of a note, null once it is gone; `by` is who changed it, null for us. */
  constructor(board, { changed, failed }) {
    this.#board = board;
    this.#changed = changed;
    this.#failed = failed;
  }

  /** Stops sending changes and calling `changed`. */
  close() {
    this.#closed = true;
  }

  /** All notes as they are now. */
  all() {
    return [...this.#notes.values()].map(view);
  }

  /** Takes the notes as the server has them now. What was done here and isn't there yet stays. */
  show(records) {
    const known = new Set(records.map((record) => record.id));
    for (const [id, entry] of this.#notes) {
      if (entry.isListed && !known.has(id)) this.#drop(id, null);
    }
    for (const record of records) {
      this.#accept(record, this.#isFirst ? null : record.changed_by);
      const entry = this.#notes.get(record.id);
      if (entry) entry.isListed = true;
    }
    this.#isFirst = false;
  }

  /** Puts a new note on the board. */
  add(note) {
    const id = crypto.randomUUID();
    const entry = { id, server: null, flying: null, queued: { body: "", ...note }, creating: true, busy: false };
    this.#notes.set(id, entry);
    this.#tell(entry, null);
    this.#send(entry);
    return id;
  }

  /** Changes some fields of a note. */
  edit(id, patch) {
    const entry = this.#notes.get(id);
    if (!entry) return;
    entry.queued = { ...entry.queued, ...patch };
    this.#tell(entry, null);
    this.#send(entry);
  }

  /** Takes a note off the board; gives what it was. */
  remove(id) {
    const entry = this.#notes.get(id);
    if (!entry) return null;
    const was = view(entry);
    this.#drop(id, null);
    const send = () => api("DELETE", `notes/${id}`).catch((error) => {
      if (error.status === 0 || error.status === 503) setTimeout(send, RETRY);
      else if (error.status !== 404) this.#failed(error);
    });
    // A note that is being created can be deleted only afterwards.
    if (entry.created) entry.created.then(send);
    else send();
    return was;
  }

  #accept(record, by) {
    if (this.#gone.has(record.id)) return;
    let entry = this.#notes.get(record.id);
    if (!entry) {
      entry = { id: record.id, server: null, flying: null, queued: null, creating: false, busy: false };
      this.#notes.set(record.id, entry);
    }
    // The answer to our own request and the stream's row come in any order.
    if (entry.server && entry.server.version >= record.version) return;
    const ours = entry.flying || entry.queued;
    entry.server = record;
    this.#tell(entry, ours ? null : by);
  }

  #drop(id, by) {
    this.#gone.add(id); // ids are never used again
    if (this.#notes.delete(id) && !this.#closed) this.#changed(id, null, by);
  }

  #tell(entry, by) {
    if (!this.#closed) this.#changed(entry.id, view(entry), by);
  }

  // One request for each note at a time. Changes made meanwhile go into the next request.
  async #send(entry) {
    // A note that was deleted while there was no connection must not be created after all.
    const isGone = this.#notes.get(entry.id) !== entry;
    if (entry.busy || !entry.queued || isGone || this.#closed) return;
    entry.busy = true;
    entry.flying = entry.queued;
    entry.queued = null;
    const request = entry.creating
      ? api("POST", `boards/${this.#board}/notes`, { id: entry.id, colour: "yellow", ...entry.flying })
      : api("PATCH", `notes/${entry.id}`, entry.flying);
    if (entry.creating) entry.created = request.catch(() => {});
    try {
      const record = await request;
      entry.creating = false;
      entry.created = null;
      entry.flying = null;
      this.#accept(record, null);
    } catch (error) {
      if (error.status === 0 || error.status === 503) {
        entry.queued = { ...entry.flying, ...entry.queued };
        setTimeout(() => this.#send(entry), RETRY);
      } else if (error.status === 409 && entry.creating) {
        // It had arrived, and its answer was lost.
        entry.creating = false;
        entry.queued = { ...entry.flying, ...entry.queued };
      } else if (error.status === 404 || entry.creating) {
        this.#drop(entry.id, null);
        if (error.status !== 404) this.#failed(error);
      } else {
        this.#failed(error);
      }
      entry.flying = null;
      if (this.#notes.has(entry.id)) this.#tell(entry, null);
      if (error.status === 0 || error.status === 503) return void (entry.busy = false);
    }
    entry.busy = false;
    if (this.#notes.has(entry.id)) this.#send(entry);
  }
}

function view(entry) {
  return { ...entry.server, ...entry.flying, ...entry.queued, id: entry.id };
}

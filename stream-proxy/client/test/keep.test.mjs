// The default reducer: rows by table and key.

import assert from "node:assert/strict";
import { test } from "node:test";
import { keep } from "../tidings-client.js";
import { row } from "./server.mjs";

/** The rows after these payloads. */
function after(key, ...payloads) {
  const [reduce, rows] = [keep(key), new Map()];
  for (const payload of payloads) reduce(rows, { event: "changed", data: JSON.stringify(payload) });
  return [...rows.values()];
}

test("rows are inserted, changed in their place, and deleted", () => {
  const [a, b, c] = [{ id: 1, x: 1 }, { id: 2, x: 1 }, { id: 3, x: 1 }];
  assert.deepEqual(after("id", row("SNAPSHOT", a), row("INSERT", b), row("INSERT", c), row("DELETE", null, b)), [a, c]);
  assert.deepEqual(after("id", row("INSERT", a), row("INSERT", b), row("UPDATE", { id: 1, x: 2 }, { x: 1 })), [{ id: 1, x: 2 }, b]);
  assert.deepEqual(after("id", row("UPDATE", a, { x: 0 })), [a], "a row that a condition lets in only now");
  assert.deepEqual(after("id", row("DELETE", null, a)), []);
});

test("a row that leaves for another topic is gone, and one that moves between two of ours stays", () => {
  const [before, moved] = [{ id: 1, board: 5 }, { id: 1, board: 6 }];
  assert.deepEqual(after("id", row("INSERT", before), row("DELETE", null, before)), []);
  assert.deepEqual(after("id", row("INSERT", before), row("DELETE", null, before), row("INSERT", moved)), [moved]);
});

test("a changed key moves the row, with the old record of each kind", () => {
  const [before, now] = [{ id: 1, x: 1 }, { id: 7, x: 1 }];
  assert.deepEqual(after("id", row("INSERT", before), row("UPDATE", now, { id: 1 })), [now]);
  assert.deepEqual(after("id", row("INSERT", before), row("UPDATE", now, before)), [now]);
});

test("several tables with the same keys do not get in one another's way", () => {
  const [item, person, other] = [{ id: 1 }, { id: 1, name: "Ada" }, { id: 1, of: "another schema" }];
  const rows = [row("INSERT", item), row("INSERT", person, null, "people"), row("INSERT", other, null, "items", "app")];
  assert.deepEqual(after("id", ...rows), [item, person, other]);
  assert.deepEqual(after("id", ...rows, row("DELETE", null, item)), [person, other]);
  assert.deepEqual(after("id", ...rows, row("TRUNCATE", null, null, "people")), [item, other]);
  assert.deepEqual(after("id", ...rows, row("TRUNCATE", null)), [person, other]);
});

test("the name of a table is no prefix of another's", () => {
  const rows = ["a", "a ", 'a" ', "ab", 'a\\"'].map((table) => row("INSERT", { id: table }, null, table));
  for (const { table } of rows) {
    const left = after("id", ...rows, row("TRUNCATE", null, null, table)).map(({ id }) => id);
    assert.deepEqual(left, rows.map((each) => each.table).filter((name) => name !== table));
  }
});

test("a key is a column, several columns, a function, or one of these for each table", () => {
  const [a, b] = [{ board: 1, person: 23 }, { board: 12, person: 3 }];
  for (const key of [["board", "person"], ({ board, person }) => `${board}/${person}`, { items: ["board", "person"] }, { items: (each) => [each.board, each.person] }]) {
    assert.deepEqual(after(key, row("INSERT", a), row("INSERT", b)), [a, b]);
    assert.deepEqual(after(key, row("INSERT", a), row("INSERT", b), row("DELETE", null, a)), [b]);
  }
  const named = (each, table) => `${table} ${each.name}`;
  assert.deepEqual(after(named, row("INSERT", { name: "x" }), row("UPDATE", { name: "y" }, { name: "x" })), [{ name: "y" }]);
  assert.deepEqual(after({ "app.items": "name" }, row("INSERT", { name: "x" }, null, "items", "app"), row("INSERT", { id: 1 })), [{ name: "x" }, { id: 1 }]);
});

test("a row without its key is an error that names the table, not a row that hides others", () => {
  assert.throws(() => after("id", row("INSERT", { name: "x" })), /items.*id/);
  assert.throws(() => after(["id", "board"], row("DELETE", null, { id: 1 })), /items.*id,board/);
  // Payloads that were too large come without their rows.
  for (const type of ["INSERT", "UPDATE", "DELETE"]) assert.throws(() => after("id", { ...row(type, null), truncated: true }), /items/);
});

test("what is no change of a row is passed over", () => {
  const rows = new Map();
  for (const data of ["<p>published text</p>", "5", "null", '{"hello": "world"}', '{"type": "x"}', "[]", '"text"', '{"change": {"board": 5}}']) {
    keep()(rows, { event: "message", data });
  }
  assert.equal(rows.size, 0);
});

test("numbers that JSON.parse would round can be parsed otherwise", () => {
  const parse = (text) => JSON.parse(text.replace(/"id": *(\d+)/g, '"id":"$1"'), (key, value) => (key === "id" ? BigInt(value) : value));
  const [reduce, rows] = [keep("id", parse), new Map()];
  for (const id of ["9007199254740992", "9007199254740993"]) {
    reduce(rows, { event: "changed", data: `{"schema":"public","table":"items","type":"INSERT","record":{"id": ${id}},"old_record":null}` });
  }
  assert.deepEqual([...rows.values()].map((each) => each.id), [9007199254740992n, 9007199254740993n]);
});

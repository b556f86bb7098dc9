// Who is no member, or no longer.

import assert from "node:assert/strict";
import { note, scenario, stack } from "./scenario.mjs";
import { createBoard, eventually, sql } from "./stack.mjs";

scenario("who is no member gets nothing", async () => {
  const board = createBoard("Private", ["Ada"], ["Secret"]);
  const dev = await stack.person("Dev", `/boards/${board}`);
  await dev.getByText("you are not a member").waitFor();
  await dev.getByRole("heading", { name: "Your boards" }).waitFor();
  const ask = (topic, page = dev) => page.evaluate((url) => fetch(url, { credentials: "include", headers: { Accept: "text/event-stream" } })
    .then((answer) => answer.status), stack.events + topic);
  assert.equal(await ask(`/api/boards/${board}/events`), 403);
  assert.equal(await ask(`/events?topic=boards_${board}`), 403);
  assert.equal(await ask("/events?topic=people_1"), 403);
  const nobody = await stack.person(null);
  await nobody.getByRole("button", { name: "Ada" }).waitFor();
  assert.equal(await ask(`/api/boards/${board}/events`, nobody), 401);
});

scenario("a membership that is revoked ends the stream", async () => {
  const board = createBoard("Parting", ["Ada", "Ben"], ["Ours"]);
  const ben = await stack.open("Ben", board);
  // A stream of its own: the page would leave by itself when it learns that its access has ended.
  await ben.evaluate(([base, id]) => new Promise((resolve) => {
    const source = new EventSource(`${base}/api/boards/${id}/events`, { withCredentials: true });
    source.addEventListener("note", (event) => (window.seen = [...(window.seen ?? []), event.data]));
    source.onopen = resolve;
    source.onerror = () => (window.ended = source.readyState === EventSource.CLOSED);
  }), [stack.events, board]);
  const ada = await stack.open("Ada", board);
  await ada.getByRole("button", { name: "Members" }).click();
  await ada.getByRole("button", { name: "Remove Ben" }).click();
  await ben.getByText("no longer a member").waitFor();
  await eventually("the other stream is refused", () => ben.evaluate(() => window.ended));
  sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'Without Ben')`);
  await ada.keyboard.press("Escape");
  await note(ada, "Without Ben").waitFor();
  assert.equal(await ben.evaluate(() => window.seen), undefined);
});

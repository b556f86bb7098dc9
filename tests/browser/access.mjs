// Who is no member, or no longer.

import assert from "node:assert/strict";
import { note, scenario, scenarios, stack } from "./scenario.mjs";
import { createBoard, eventually, setting, sql } from "./stack.mjs";

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

scenarios("a page renews its expired cookie, and its bare EventSource goes on with its last id", async (browser) => {
  const board = createBoard("Renewal", ["Ada"]);
  const page = await stack.person(null, "/", { browser });
  // The first one expires soon: the proxy allows for clocks that differ by ten seconds.
  let given = 0;
  await page.exposeFunction("giveToken", () => stack.token("Ada", (given += 1) === 1 ? -7 : 600));
  await page.evaluate(async ([base, id, cookie]) => {
    const renew = async () => (document.cookie = `${cookie}=${await window.giveToken()}; path=/`);
    await renew();
    Object.assign(window, { seen: [], told: [], isClosed: false });
    const source = new EventSource(`${base}/api/boards/${id}/events`, { withCredentials: true });
    source.addEventListener("note", (event) => window.seen.push(event.data));
    source.addEventListener("unauthorized", (event) => {
      window.told.push(event.data);
      renew();
    });
    source.onerror = () => (window.isClosed ||= source.readyState === EventSource.CLOSED);
    await new Promise((resolve) => (source.onopen = resolve));
  }, [stack.events, board, setting("TEAMBOARD_COOKIE")]);
  const add = (body) => sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, '${body}')`);
  const seen = () => page.evaluate(() => window.seen);
  add("Before");
  await eventually("the first note", async () => (await seen()).length === 1);
  await eventually("the page gets the event", () => page.evaluate(() => window.told.length));
  add("Meanwhile");
  await eventually("the second note", async () => (await seen()).length === 2);
  const [before, meanwhile] = await seen();
  assert.ok(before.includes("Before") && meanwhile.includes("Meanwhile"));
  assert.deepEqual(await page.evaluate(() => [window.told, window.isClosed]), [['{"reason":"expired"}'], false]);
  assert.equal(given, 2);
});

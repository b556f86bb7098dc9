// People who work on a board at the same time.

import assert from "node:assert/strict";
import { assertExact, drag, note, place, scenario, stack, texts } from "./scenario.mjs";
import { createBoard, eventually, sql } from "./stack.mjs";

scenario("two people work on one board and see each other at it", async () => {
  const ben = await stack.person("Ben");
  await ben.waitForSelector("h2");
  const ada = await stack.person("Ada");
  await ada.getByLabel("New board").fill("Garden party");
  await ada.getByRole("button", { name: "Create" }).click();
  await ada.waitForSelector(".state.live");

  // Invited, it appears on Ben's page by itself.
  await ada.getByRole("button", { name: "Members" }).click();
  await ada.getByLabel("Invite").selectOption("Ben");
  await ada.getByRole("button", { name: "Add to board" }).click();
  await ada.keyboard.press("Escape");
  await ben.getByText("Garden party").click();
  await ben.waitForSelector(".state.live");
  await ada.getByRole("img", { name: "Here now: Ada, Ben" }).waitFor();

  await ada.keyboard.press("n");
  await ada.keyboard.type("Lanterns");
  await ada.keyboard.press("Enter");
  await note(ben, "Lanterns").waitFor();

  await drag(ben, "Lanterns", 300, 150);
  const target = await place(ben, "Lanterns");
  await eventually("Ada sees where Ben has put it", async () => String(await place(ada, "Lanterns")) === String(target));

  await note(ben, "Lanterns").dblclick();
  await ben.getByLabel("Text of the note").fill("Paper lanterns");
  await ben.keyboard.press("Enter");
  await note(ada, "Paper lanterns").waitFor();

  await note(ada, "Paper lanterns").focus();
  await ada.getByRole("button", { name: "violet (5)" }).click();
  await ben.locator(".note.violet").waitFor();

  await ada.getByLabel("Title of the board").fill("Summer party");
  await ada.keyboard.press("Enter");
  await ben.getByRole("heading", { name: "Summer party" }).waitFor({ state: "attached" });

  await note(ada, "Paper lanterns").focus();
  await ada.keyboard.press("Delete");
  await eventually("it is gone for Ben too", async () => (await texts(ben)).length === 0);
  await assertExact(ada);
  await assertExact(ben);
  // As text, because the report of a failed test does not show what is inside an array.
  assert.equal([ada, ben].flatMap((page) => page.lines).join("\n"), "", "the browser's console");
});

scenario("what a browser asks for by itself is there", async () => {
  const ada = await stack.person("Ada", "/page/icon.svg");
  const found = await ada.evaluate(() => fetch("/favicon.ico").then((answer) => answer.headers.get("content-type")));
  assert.equal(found, "image/svg+xml");
});

scenario("a note is made, moved, coloured, edited and deleted by keyboard alone", async () => {
  const board = createBoard("Keys", ["Ada"], ["First"]);
  const ada = await stack.open("Ada", board);
  for (let i = 0; i < 10 && !(await note(ada, "First").evaluate((element) => element === document.activeElement)); i += 1) {
    await ada.keyboard.press("Tab");
  }
  for (const key of ["ArrowRight", "ArrowDown", "Shift+ArrowDown", "4", "Enter"]) await ada.keyboard.press(key);
  await ada.keyboard.press("ControlOrMeta+a");
  await ada.keyboard.type("Second");
  await ada.keyboard.press("Enter");
  await eventually("the database has it all", () => sql(`SELECT body, colour, x, y FROM board_items WHERE board_id = ${board}`) === "Second|green|32|96");
  await ada.keyboard.press("Delete");
  await eventually("it is deleted", () => sql(`SELECT count(*) FROM board_items WHERE board_id = ${board}`) === "0");
  await ada.getByRole("button", { name: "Undo" }).press("Enter");
  await eventually("it is back", () => sql(`SELECT body, colour, x, y FROM board_items WHERE board_id = ${board}`) === "Second|green|32|96");
});

scenario("the article's wire works as it stands", async () => {
  const board = createBoard("Wire", ["Ada"]);
  const ada = await stack.open("Ada", board);
  await ada.evaluate(([base, id]) => new Promise((resolve) => {
    window.changes = [];
    const source = new EventSource(`${base}/api/boards/${id}/events`, { withCredentials: true });
    source.addEventListener("changed", (event) => window.changes.push(JSON.parse(event.data).change));
    source.onopen = resolve;
  }), [stack.events, board]);
  const item = sql(`INSERT INTO board_items (board_id, body) VALUES (${board}, 'x') RETURNING id`);
  sql(`UPDATE boards SET title = 'Rewired' WHERE id = ${board}`);
  sql(`DELETE FROM board_items WHERE id = '${item}'`);
  const changes = await eventually("all changes have come", () => ada.evaluate(() => window.changes.length >= 3 && window.changes));
  assert.deepEqual(changes, [{ board_item: item }, { board }, { board_item: item }]);
});

scenario("the list of all boards is live too", async () => {
  const board = createBoard("Overview", ["Ada", "Ben"], ["One"]);
  const ben = await stack.person("Ben");
  const card = ben.locator(`[data-board="${board}"]`);
  await card.getByText("1 note", { exact: true }).waitFor();
  await ben.waitForFunction(() => window.streams > 0);
  sql(`INSERT INTO board_items (board_id, body, x) VALUES (${board}, 'Two', 500)`);
  await card.getByText("2 notes").waitFor();
  const places = () => card.locator(".mini").evaluateAll((minis) => minis.map((mini) => parseFloat(mini.style.getPropertyValue("--x"))));
  const before = await places();
  sql(`UPDATE board_items SET x = 1000 WHERE board_id = ${board} AND body = 'Two'`);
  await eventually("the small picture follows", async () => Math.max(...(await places())) === 2 * Math.max(...before));
  sql(`UPDATE boards SET title = 'Survey' WHERE id = ${board}`);
  await card.getByText("Survey").waitFor();
  sql(`DELETE FROM board_members WHERE board_id = ${board} AND person_id = 2`);
  await card.waitFor({ state: "detached" });
});

scenario("with more boards than one stream can follow, the newest are shown", async () => {
  sql("INSERT INTO boards (title, owner_id) SELECT 'Many ' || n, 1 FROM generate_series(1, 61) AS n ORDER BY n");
  try {
    const ada = await stack.person("Ada");
    await ada.getByText("Many 61", { exact: true }).waitFor();
  } finally {
    sql("DELETE FROM boards WHERE title LIKE 'Many %'");
  }
});

scenario("a board that its owner deletes is gone for everybody", async () => {
  const board = createBoard("Ephemeral", ["Ada", "Ben"], ["Dust"]);
  const ben = await stack.open("Ben", board);
  const ada = await stack.open("Ada", board);
  assert.equal(await ben.getByRole("button", { name: "Delete board" }).count(), 0, "only the owner can");
  ada.once("dialog", (dialog) => dialog.accept());
  await ada.getByRole("button", { name: "Delete board" }).click();
  for (const page of [ada, ben]) await page.getByRole("heading", { name: "Your boards" }).waitFor();
  await ben.getByText("is gone, or you are no longer a member").waitFor();
  assert.equal(sql(`SELECT count(*) FROM board_items WHERE board_id = ${board}`), "0");
});

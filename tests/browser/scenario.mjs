// What scenarios have in common: the stack they run on, and what one does and looks for on a board.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { BROWSERS, eventually, Stack } from "./stack.mjs";

export let stack;
before(async () => {
  stack = await Stack.start();
});
after(() => stack?.stop());

/** A test with fresh browsers, whose pages are kept if it fails, and throw no errors if it does not. */
export function scenario(name, run) {
  test(name, async () => {
    let failed = name;
    try {
      await run();
      failed = null;
    } finally {
      await stack.clear(failed);
    }
  });
}

/** The same in each browser; `run` gets the browser's name. */
export function scenarios(name, run, browsers = BROWSERS) {
  for (const browser of browsers) scenario(`${name} (${browser})`, () => run(browser));
}

/** Waits until the page shows `text` in one of the elements of `selector`. This works in each browser, a locator does not. */
export const sees = (page, selector, text) => eventually(`${selector} shows ${text}`, () => page.evaluate(
  ([selector, text]) => [...document.querySelectorAll(selector)].some((element) => element.textContent.includes(text)), [selector, text]));

export const note = (page, text) => page.locator(".note", { hasText: text });
export const texts = (page) => page.evaluate(() => [...document.querySelectorAll("p.note-text")].map((element) => element.textContent).sort());
export const place = (page, text) => note(page, text).evaluate((element) => [element.style.getPropertyValue("--x"), element.style.getPropertyValue("--y")].map(parseFloat));
/** How often the page has been given all rows anew. */
export const snapshotsOf = (page) => page.evaluate(() => window.delivered.filter((event) => event.name === "reset").length);

/** Drags a note by the mouse. */
export async function drag(page, text, dx, dy) {
  const box = await note(page, text).boundingBox();
  await page.mouse.move(box.x + 40, box.y + 40);
  await page.mouse.down();
  await page.mouse.move(box.x + 40 + dx / 2, box.y + 40 + dy / 2, { steps: 5 });
  await page.mouse.move(box.x + 40 + dx, box.y + 40 + dy, { steps: 5 });
  await page.mouse.up();
}

/** Each event has come once, in order; a page that has reconnected must not show that it did. */
export async function assertExact(page) {
  // Rows that were there have no id, and a reset has one that is no position.
  const ids = await page.evaluate(() => window.delivered.flatMap(({ name, id }) => (name === "reset" ? [] : id ?? [])));
  assert.equal(new Set(ids).size, ids.length, "no event comes twice");
  const order = ids.map((id) => id.split(":")[0].split("-").map(BigInt));
  for (let i = 1; i < order.length; i += 1) {
    const [[tick, n], [nextTick, nextN]] = [order[i - 1], order[i]];
    assert.ok(nextTick > tick || (nextTick === tick && nextN > n), `${ids[i - 1]} comes before ${ids[i]}`);
  }
}

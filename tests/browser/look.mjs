// How it looks, and for whom it works: widths, light and dark, what axe-core finds.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { drag, note, scenario, stack } from "./scenario.mjs";
import { artifacts } from "./stack.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export async function assertAccessible(page, where) {
  // Through the debugger: the page's own policy lets no foreign script in.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const found = violations.filter((violation) => ["serious", "critical"].includes(violation.impact));
  assert.deepEqual(found.map((violation) => `${where}: ${violation.id}: ${violation.nodes.map((node) => node.html).join(" ")}`), []);
  const width = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(width <= 0, `${where} is ${width} pixels too wide`);
}

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 390]) {
    scenario(`it is accessible and fits at ${width} pixels, ${colorScheme}`, async () => {
      const options = { colorScheme, viewport: { width, height: 800 }, reducedMotion: "reduce" };
      // A picture of each, for people to judge.
      const assertFine = async (page, where) => {
        await page.screenshot({ path: path.join(artifacts, "look", `${where.replaceAll(" ", "-")}-${width}-${colorScheme}.png`) });
        await assertAccessible(page, where);
      };
      const nobody = await stack.person(null, "/", options);
      await nobody.getByRole("button", { name: "Ada" }).waitFor();
      await assertFine(nobody, "signing in");
      const ada = await stack.person("Ada", "/", options);
      await ada.locator(".card", { hasText: "Spring launch" }).waitFor();
      await assertFine(ada, "all boards");
      const board = await stack.open("Ada", 5, options);
      await board.locator(".note").first().focus();
      await assertFine(board, "a board");
      await board.getByRole("button", { name: "Delete (Delete)" }).first().focus();
      await board.keyboard.press("Enter");
      await board.getByRole("button", { name: "Undo" }).waitFor();
      await assertFine(board, "a message");
      await board.getByRole("button", { name: "Undo" }).click();
      await board.getByRole("button", { name: "Members" }).click();
      await assertFine(board, "members");
    });
  }
}

// docs/teamboard.png is one of these: copied from here by hand, so a test run leaves no changed file behind.
scenario("the README's picture", async () => {
  const ben = await stack.open("Ben", 5, { viewport: { width: 960, height: 540 } });
  const ada = await stack.open("Ada", 5, { viewport: { width: 960, height: 540 } });
  await ben.getByRole("img", { name: "Here now: Ada, Ben" }).waitFor();
  await ada.getByRole("img", { name: "Here now: Ada, Ben" }).waitFor();
  await ada.evaluate(() => document.activeElement?.blur());
  await drag(ben, "Cake", 30, 10);
  await ada.locator(".note.touched", { hasText: "Cake" }).waitFor();
  await ada.screenshot({ path: path.join(artifacts, "teamboard.png") });
});

// What would be published.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

test("it is at most 4.3 KB gzipped, has no dependency, and its types name what it gives", () => {
  const read = (name) => readFileSync(new URL(`../${name}`, import.meta.url), "utf8");
  const module = read("tidings-client.js");
  const size = gzipSync(module, { level: 9 }).length;
  assert.ok(size <= 4_403, `${size} bytes`);
  assert.ok(!/^import |import\(/m.test(module));
  const described = JSON.parse(read("package.json"));
  assert.equal(described.dependencies, undefined);
  for (const file of described.files) assert.ok(read(file).length > 0);
  const types = read("tidings-client.d.ts");
  for (const [, name] of module.matchAll(/^export function (\w+)/gm)) assert.match(types, new RegExp(`export function ${name}[<(]`));
});

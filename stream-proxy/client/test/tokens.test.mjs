// Tokens that expire, and servers that refuse.

import assert from "node:assert/strict";
import { test } from "node:test";
import { happens, pauses, sleep } from "./page.mjs";
import { A, is, open, openWith, server, shows } from "./setup.mjs";

test("the token is asked for again before each request", async () => {
  let n = 0;
  const [, stream] = await openWith([A], { token: async () => `token ${(n += 1)}` });
  assert.equal(stream.headers.authorization, "Bearer token 1");
  stream.cut();
  assert.equal((await server.request()).headers.authorization, "Bearer token 2");
});

test("a token that has expired is replaced at once, and the stream goes on from the last id", async () => {
  let n = 0;
  const [list, stream] = await openWith([A], { token: () => `token ${(n += 1)}` });
  stream.event("unauthorized", { reason: "expired" }).send("retry: 60000\n\n").end();
  const next = await server.request();
  assert.deepEqual([next.headers.authorization, next.query.get("last_event_id")], ["Bearer token 2", "10"]);
  next.refuse(401);
  const third = await server.request();
  assert.equal(third.headers.authorization, "Bearer token 3");
  assert.deepEqual(pauses, [], "no pause yet");
  third.refuse(401);
  await is(list, "denied");
  const fourth = await server.request();
  assert.equal(pauses.length, 1);
  fourth.event("position", {}, "10");
  await is(list, "live");
});

test("a token that can't be had is no end", async () => {
  let fails = true;
  const list = open({ token: () => (fails ? Promise.reject(new Error("no token now")) : "token") });
  await is(list, "offline");
  assert.equal(list.error.message, "no token now");
  fails = false;
  (await server.request()).snapshot([A], "10");
  await shows(list, [A]);
});

test("without a way to another token, a refusal is final", async () => {
  for (const status of [401, 403]) {
    for (const token of [undefined, "a text"]) {
      const list = open({ token });
      (await server.request()).refuse(status);
      await is(list, "denied");
      assert.equal(list.error.message, `refused, status ${status}`);
    }
  }
  happens("online");
  sleep(100_000);
  happens("visibilitychange");
  await server.assertQuiet();
});

test("with a cookie that has expired it comes back when the server says", async () => {
  const [list, stream] = await openWith([A]);
  stream.event("unauthorized", { reason: "expired" }).send("retry: 45000\n\n").end();
  const next = await server.request();
  assert.deepEqual([pauses, list.state, next.query.get("last_event_id")], [[45_000], "denied", "10"]);
  next.event("position", {}, "10");
  await is(list, "live");
});

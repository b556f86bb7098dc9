// What the tests of live lists have in common: a server for each test, and lists that are closed after it.

import { afterEach, beforeEach } from "node:test";
import { channels, pauses, setLocks } from "./page.mjs";
import { Server, until } from "./server.mjs";
import { live } from "../tidings-client.js";

export let server;
const lists = [];

beforeEach(async () => {
  server = await Server.start();
  for (const record of [pauses, channels]) record.length = 0;
});

afterEach(async () => {
  for (const list of lists.splice(0)) list.close();
  setLocks(null);
  await server.stop();
});

/** A list to which nobody listens yet. */
export function newList(options) {
  const made = live(server.url, { topics: ["t"], ...options });
  lists.push(made);
  return made;
}

/** A list with a listener, so it asks for its rows. */
export function open(options) {
  const opened = newList(options);
  opened.subscribe(() => {});
  return opened;
}

/** A list with these rows, and the request whose stream it reads. */
export async function openWith(rows, options) {
  const opened = open(options);
  const stream = (await server.request()).send("retry: 100\n: tidings\n\n").snapshot(rows, "10");
  await is(opened, "live");
  return [opened, stream];
}

/** Waits until the list has these rows. */
export const shows = (list, rows) => until(`it shows ${JSON.stringify(rows)}`, () => JSON.stringify(list.rows) === JSON.stringify(rows));

/** Waits until the list is in this state. */
export const is = (list, state) => until(`it is ${state}`, () => list.state === state);

export const [A, B, C] = [1, 2, 3].map((id) => ({ id, x: 0 }));

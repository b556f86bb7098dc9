// The parser of text/event-stream, against the standard's own words, wherever the stream is cut.

import assert from "node:assert/strict";
import { test } from "node:test";
import { parser } from "../tidings-client.js";

/** What the standard makes of a whole stream, line by line: https://html.spec.whatwg.org/multipage/server-sent-events.html */
function standard(text) {
  const lines = text.replace(/^\uFEFF/, "").split(/\r\n|\r|\n/);
  lines.pop(); // not ended
  let [id, event, data] = ["", "", ""];
  const [events, others] = [[], []];
  for (const line of lines) {
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (line === "") {
      if (data !== "") events.push({ id, event: event || "message", data: data.slice(0, -1) });
      [event, data] = ["", ""];
    } else if (field === "data") data += `${value}\n`;
    else if (field === "event") event = value;
    else if (field === "id") id = value.includes("\0") ? id : value;
    else others.push([field, value]);
  }
  return { events, others };
}

/** What ours makes of these bytes, decoded piece by piece as they come. */
function ours(pieces) {
  const [events, others, decoder] = [[], [], new TextDecoder()];
  const feed = parser((event) => events.push(event), (field, value) => others.push([field, value]));
  for (const piece of pieces) feed(decoder.decode(piece, { stream: true }));
  return { events, others };
}

function cut(bytes, at) {
  const ends = [...at, bytes.length];
  return ends.map((end, i) => bytes.subarray(ends[i - 1] ?? 0, end));
}

test("a stream is read the same wherever it is cut", () => {
  const text = "\uFEFFretry: 10\n: hello\r\n\r\nid: 5-1\revent: a\rdata: {\"x\": \"ü🎈\"}\r\rdata:1\r\ndata:  2\r\ndata\r\n\r\ndata: ends\n\ndata: cut off";
  const bytes = new TextEncoder().encode(text);
  const whole = standard(text);
  assert.deepEqual(whole.events.map((event) => event.data), ['{"x": "ü🎈"}', "1\n 2\n", "ends"]);
  for (let i = 0; i <= bytes.length; i += 1) {
    for (let j = i; j <= bytes.length; j += 1) assert.deepEqual(ours(cut(bytes, [i, j])), whole, `cut at ${i} and ${j}`);
  }
  assert.deepEqual(ours([...bytes].map((byte) => Uint8Array.of(byte))), whole, "byte by byte");
});

test("any lines in any pieces are read as the standard says", () => {
  // A generator with a seed, so that a failure can be had again.
  const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
  let word = seed + 1;
  const random = (n) => {
    word = (word * 48_271) % 2_147_483_647;
    return word % n;
  };
  const pick = (list) => list[random(list.length)];
  const names = ["data", "data", "data", "event", "id", "retry", "", "", "x", "data ", " data", "DATA", "constructor", "__proto__", "\uFEFFdata"];
  const values = ["", " ", ":", "a", "  b", "ü", "🎈", "漢字", "5-1", "10", "1\0", "\u2028", "\u0085", "data: x", "\uFEFF", "{\"a\": 1}"];
  for (let round = 0; round < 3_000; round += 1) {
    let text = pick(["", "", "\uFEFF", "\n"]);
    for (let i = random(12); i >= 0; i -= 1) {
      if (random(3) > 0) text += `${pick(names)}${pick(["", ":", ": ", ":  "])}${pick(values)}`;
      text += pick(["\n", "\r", "\r\n", "\n\n", "\r\r", "\r\n\r\n", "\n\r", ""]);
    }
    const bytes = new TextEncoder().encode(text);
    const at = Array.from({ length: random(6) }, () => random(bytes.length + 1)).sort((a, b) => a - b);
    assert.deepEqual(ours(cut(bytes, at)), standard(text), `SEED=${seed}, round ${round}: ${JSON.stringify(text)} cut at ${at}`);
  }
});

// What one of npm's packages makes of a stream: one line of JSON for each event. It reconnects by itself.
//
//   node eventsource.mjs PACKAGE URL NAME…

const [name, url, ...names] = process.argv.slice(2);
// This one wraps the browser's own.
if (name === "reconnecting-eventsource") globalThis.EventSource = (await import("eventsource")).EventSource;
const module = await import(name);
const Source = module.EventSource ?? module.EventSourcePolyfill ?? module.default.EventSourcePolyfill ?? module.default.default ?? module.default;
const stream = new Source(url);
const show = (event) => console.log(JSON.stringify({ id: event.lastEventId, event: event.type, data: event.data }));
for (const name of names) stream.addEventListener(name, show);
stream.onopen = () => console.log(JSON.stringify({ open: true }));

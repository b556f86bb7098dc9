// What npm's `eventsource` makes of a stream: one line of JSON for each event. It reconnects by itself.
//
//   node eventsource.mjs URL NAME…

import { EventSource } from "eventsource";

const [url, ...names] = process.argv.slice(2);
const stream = new EventSource(url);
const show = (event) => console.log(JSON.stringify({ id: event.lastEventId, event: event.type, data: event.data }));
for (const name of names) stream.addEventListener(name, show);
stream.onopen = () => console.log(JSON.stringify({ open: true }));

// What one of npm's packages makes of a stream: one line of JSON for each event. It reconnects by itself.
//
//   node eventsource.mjs PACKAGE URL NAME…
//
// With TOKEN in the environment it sends that, or says that it can't.

const [name, url, ...names] = process.argv.slice(2);
const { TOKEN } = process.env;
const headers = TOKEN ? { Authorization: `Bearer ${TOKEN}` } : {};

const say = (line) => console.log(JSON.stringify(line));
const show = (id, event, data) => say({ id, event: event || "message", data });
const opened = () => say({ open: true });

// An exception in a promise must not look like a stream that ends.
process.on("unhandledRejection", (problem) => console.error(problem));

/** An object like a browser's EventSource. */
function listen(stream) {
  for (const each of names) stream.addEventListener(each, ({ lastEventId, type, data }) => show(lastEventId, type, data));
  stream.onopen = opened;
  stream.onerror = () => {};
}

const packages = {
  async eventsource() {
    const { EventSource } = await import("eventsource");
    listen(new EventSource(url, { fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, ...headers } }) }));
  },
  async "eventsource-2"() {
    const { default: EventSource } = await import("eventsource-2");
    listen(new EventSource(url, { headers }));
  },
  async "event-source-polyfill"() {
    const { default: { EventSourcePolyfill } } = await import("event-source-polyfill");
    listen(new EventSourcePolyfill(url, { headers }));
  },
  async "reconnecting-eventsource"() {
    // It wraps the browser's own, which sends no headers.
    if (TOKEN) return say({ open: false });
    globalThis.EventSource = (await import("eventsource")).EventSource;
    const { default: module } = await import("reconnecting-eventsource");
    listen(new (module.default ?? module)(url));
  },
  async "launchdarkly-eventsource"() {
    const { EventSource } = await import("launchdarkly-eventsource");
    listen(new EventSource(url, { headers }));
  },
  async "extended-eventsource"() {
    const { EventSource } = await import("extended-eventsource");
    listen(new EventSource(url, { headers }));
  },
  async "eventsource-client"() {
    const { createEventSource } = await import("eventsource-client");
    createEventSource({ url, headers, onMessage: ({ id, event, data }) => show(id, event, data), onConnect: opened });
  },
  async "@microsoft/fetch-event-source"() {
    // It is made for a page.
    globalThis.window = globalThis;
    const { fetchEventSource } = await import("@microsoft/fetch-event-source");
    fetchEventSource(url, {
      headers,
      openWhenHidden: true,
      onopen: async (answer) => {
        if (!answer.ok) throw new Error(`status ${answer.status}`);
        opened();
      },
      // It hands out every block, also one without data.
      onmessage: ({ id, event, data }) => data && show(id, event, data),
      // The end of a stream is no error to it, and then it does not reconnect.
      onclose: () => {
        throw new Error("the end");
      },
      onerror: () => {},
    });
  },
};

await packages[name]();

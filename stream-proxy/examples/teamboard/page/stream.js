// The live side: an EventSource, and the little that a browser leaves to do around it.

/** A gap between two ticks of our clock that means that the machine was asleep, in milliseconds. */
const ASLEEP = 30_000;

/** The first and the longest wait before a refused stream is tried again, in milliseconds. */
const [FIRST_WAIT, LONGEST_WAIT] = [1_000, 15_000];

/**
 * Opens a stream of events that goes on where `position` ends.
 *
 * `handlers` has a function for each event name, called with the event's JSON. `onState` is told "connecting", "live", "waiting" or
 * "offline". `onReset` is called, and the stream is over, when the server can't tell what we missed: read everything anew then.
 * `onRefused` decides whether a stream that the server refused is tried again (it gives a promise of true or false).
 */
export function openStream({ base, path, topics, position, handlers, onState, onReset, onRefused }) {
  let source = null;
  let lastId = "";
  let wait = FIRST_WAIT;
  let timer = 0;
  let over = false;

  function connect() {
    clearTimeout(timer);
    source?.close();
    const url = new URL(path, base || location.origin);
    for (const topic of topics) url.searchParams.append("topic", topic);
    // The browser sends Last-Event-ID when it reconnects by itself, and that wins. This is for the streams that we open.
    if (lastId) url.searchParams.set("last_event_id", lastId);
    else url.searchParams.set("since", position);
    onState("connecting");
    source = new EventSource(url, { withCredentials: true });
    source.onopen = () => {
      wait = FIRST_WAIT;
      onState("live");
    };
    source.onerror = () => {
      onState(navigator.onLine ? "waiting" : "offline");
      // After a cut connection the browser reconnects. After a refusal it gives up, and it is our turn.
      if (source.readyState === EventSource.CLOSED) timer = setTimeout(again, wait * (0.5 + Math.random()));
    };
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        lastId = event.lastEventId;
        handle(JSON.parse(event.data));
      });
    }
    // Says where we are when nothing has happened for a while.
    source.addEventListener("position", (event) => (lastId = event.lastEventId));
    source.addEventListener("reset", () => {
      close();
      onReset();
    });
  }

  async function again() {
    wait = Math.min(wait * 2, LONGEST_WAIT);
    if (!(await onRefused())) return close();
    if (!over) connect();
  }

  // A connection that died while the machine slept, or with its network, often looks alive for minutes.
  let lastTick = Date.now();
  const clock = setInterval(() => {
    if (Date.now() - lastTick > ASLEEP) connect();
    lastTick = Date.now();
  }, 5_000);
  const wentOffline = () => onState("offline");
  addEventListener("online", connect);
  addEventListener("offline", wentOffline);

  function close() {
    over = true;
    clearTimeout(timer);
    clearInterval(clock);
    removeEventListener("online", connect);
    removeEventListener("offline", wentOffline);
    source?.close();
  }

  connect();
  return { close };
}

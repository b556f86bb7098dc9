// Keeps rows equal to those in the database: see docs/javascript.md. Times are in milliseconds.

const CLOCK = 2_500; // how often it looks for signs of life
const LONGEST_PAUSE = 30_000;
const POLLING_TIME = 600_000; // after a stream was held back
const SILENCE = 2.5; // heartbeats: then the stream is dead

/** Parses a stream, cut anywhere; `other` gets comments and `retry`. */
export function parser(emit, other) {
  let [rest, afterCr, id, event, data] = ["", false, "", "", []];
  return (text) => {
    if (!text) return;
    const lines = (rest + (afterCr && text[0] === "\n" ? text.slice(1) : text)).split(/\r\n?|\n/);
    afterCr = text.endsWith("\r");
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "data") data.push(value);
      else if (field === "event") event = value;
      else if (field === "id") id = value.includes("\0") ? id : value;
      else if (line) other?.(field, value);
      else {
        if (data.length) emit({ id, event: event || "message", data: data.join("\n") });
        [event, data] = ["", []];
      }
    }
  };
}

const prefix = (table) => `${JSON.stringify(table)} `;

/** The reducer for the default payload: `rows` is a Map. */
export function keep(key = "id", parse = JSON.parse) {
  return (rows, { data }) => {
    let change;
    try {
      change = parse(data);
    } catch {} // published text
    const { schema, table, type, record, old_record: old } = change ?? {};
    if (!table || !type) return;
    const name = schema === "public" ? table : `${schema}.${table}`;
    const place = (row) => {
      const by = key.constructor === Object ? key[name] ?? "id" : key;
      const values = by.call ? [by(row, name)] : [by].flat().map((column) => row?.[column]);
      if (values.includes(undefined)) throw new Error(`${name}: a row without ${by}`);
      return prefix(name) + JSON.stringify(values.map(String));
    };
    if (type === "TRUNCATE") {
      for (const at of rows.keys()) if (at.startsWith(prefix(name))) rows.delete(at);
    } else {
      // An UPDATE may change the key.
      const [before, at] = [place({ ...record, ...old }), place(record ?? old)];
      if (!record || before !== at) rows.delete(before);
      if (record) rows.set(at, record);
    }
  };
}

export function live(url, options = {}) {
  const { topics = [], key, parse, reduce = keep(key, parse), token, credentials } = options;
  const { initial = [], share = true, patience = 5_000 } = options;
  const endpoint = new URL(url, globalThis.location?.href);
  for (const topic of topics) endpoint.searchParams.append("topic", topic);
  endpoint.searchParams.set("since", "snapshot");

  let rows = new Map();
  let next = null; // the rows since a reset, shown when they are complete
  let [id, state, error] = [options.since ?? "", "connecting", null];
  let [list, tables, changed] = [null, {}, false];
  const listeners = new Set();
  const getSnapshot = () => (list ??= [...rows.values()]);

  function tell() {
    if (changed) for (const listener of listeners) attend(() => listener(getSnapshot()));
    changed = false;
  }

  function become(to) {
    changed ||= state !== to;
    state = to;
  }

  function show(from) {
    rows = from;
    [list, tables, changed] = [null, {}, true];
  }

  function take(event) {
    const { event: name } = event;
    if (name === "reset") {
      [next, id] = [new Map(), ""];
      if (!/"snapshot"/.test(event.data)) trip.abort(); // what we have is no longer true
    }
    if (name === "ready" && next) next = void show(next);
    const isMark = /^(reset|ready|position)$/.test(name);
    if (!isMark) attend(() => reduce(next ?? rows, event));
    if (next) return;
    id = event.id || id;
    if (!isMark) return show(rows);
    [failures, error] = [0, null];
    become("live");
  }

  // Requests; `trip` ends one, or the pause after it.
  let [failures, retry, silence, pollUntil, trip] = [0, 2_000, SILENCE * 20_000, 0, new AbortController()];
  let [seen, limit] = [0, 0]; // a sign of life, and the longest wait for the next
  const heard = (allowed) => ([seen, limit] = [Date.now(), allowed]);

  async function attempt(signal) {
    const polls = Date.now() < pollUntil;
    const headers = { Accept: polls ? "application/json" : "text/event-stream" };
    const bearer = token?.call ? await token() : token;
    if (bearer) headers.Authorization = `Bearer ${bearer}`;
    endpoint.searchParams.set("last_event_id", id);
    heard(polls ? silence : patience);
    const answer = await fetch(endpoint, { headers, credentials, signal });
    if (!answer.ok) throw failure("refused", answer.status, 1_000 * answer.headers.get("retry-after") || 0);
    if (polls) {
      const { position, events, reset } = await answer.json();
      if (reset) events.unshift({ event: "reset", data: JSON.stringify(reset) });
      pass([...events, { event: reset?.reason === "snapshot" ? "ready" : "position", id: position }]);
      return events.length ? 0 : Math.random() * 1_000;
    }
    const [reader, decoder, events] = [answer.body.getReader(), new TextDecoder(), []];
    let [status, wait] = [200, 0];
    const feed = parser((event) => {
      events.push(event);
      if (event.event === "unauthorized") status = 401;
    }, (field, value) => {
      if (field === "retry") wait = retry = Number(value) || retry;
      else silence = SILENCE * /heartbeat=(\d+)/.exec(value)?.[1] || silence;
    });
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw failure("ended", status, wait);
      feed(decoder.decode(value, { stream: true }));
      heard(silence);
      pass(events.splice(0));
    }
  }

  async function lead(signal) {
    [leading, term, failures] = [true, Math.max(term + 1, Date.now()), 0];
    heard(Infinity); // a token may take its time
    pass([], true);
    while (!signal.aborted) {
      let pause = 0;
      const own = (trip = new AbortController());
      failures += 1;
      try {
        pause = await attempt(own.signal);
      } catch (problem) {
        if (!own.signal.aborted) pause = judge(problem);
        // Otherwise the list was left and is in use again, and `trip` belongs to the next leader.
        else if (!leading || race.signal === signal) become("connecting");
      }
      own.abort();
      if (signal.aborted) return tell();
      heard(Infinity);
      pass([]);
      trip = new AbortController();
      if (pause) await sleep(pause, trip.signal);
    }
  }

  /** Gives the pause after a failure. */
  function judge(problem) {
    error = problem;
    const { status, wait = 0 } = problem;
    const isDenied = [401, 403].includes(status);
    const jitter = Math.random() * Math.min(LONGEST_PAUSE, retry * 2 ** failures);
    if (status === 400) id = "";
    if (isDenied && token?.call && failures < 2) return 0; // with a fresh one
    become(isDenied ? "denied" : failures ? "offline" : "connecting");
    if (isDenied && !token?.call && !wait) stop();
    return failures || !wait ? wait + jitter : wait;
  }

  // Tabs: a lock elects a leader, in a higher term than the last.
  const locks = share && globalThis.BroadcastChannel && globalThis.navigator?.locks;
  const name = ["tidings 1", endpoint, share, JSON.stringify(key), key, options.reduce, parse].join("\n");
  let [leading, term, asked, channel, race, clock] = [false, 0, false];

  function pass(events, isAll) {
    events.forEach(take);
    const all = isAll && { rows, next, id };
    // A copy of an error has no status.
    const problem = error && { message: error.message, status: error.status };
    attend(() => channel?.postMessage({ term, events, all, state, silence, problem }));
    tell();
  }

  function hear({ data: message }) {
    if (leading) return void (message.ask && pass([], true));
    if (!(message.term === term || (message.term > term && message.all))) return;
    heard(message.silence);
    asked = false;
    if (message.term > term) {
      term = message.term;
      ({ next, id } = message.all);
      show(message.all.rows);
    }
    message.events.forEach(take);
    become(message.state);
    error = message.problem && Object.assign(new Error(), message.problem);
    tell();
  }

  function compete(steal) {
    leave();
    const { signal } = (race = new AbortController());
    if (!channel) return void lead(signal);
    asked = true;
    heard(patience);
    channel.postMessage({ ask: true });
    locks.request(name, steal ? { steal } : { signal }, () => signal.aborted || lead(signal)).catch((problem) => {
      if (signal.aborted) return;
      if (problem.name !== "AbortError") channel = channel.close(); // not allowed here; else another tab took it
      compete(false);
    });
  }

  function look() {
    const late = Math.abs(Date.now() - seen) - limit;
    if (late <= 0) return;
    if (leading) {
      // Later after a sleep, which is no fault of the way.
      if (late < 4 * CLOCK) pollUntil = Date.now() + POLLING_TIME;
      trip.abort();
    } else compete(asked);
  }

  function start() {
    term -= 0.5; // what its leader has passed on since was missed, so only all rows will do
    try {
      if (locks) (channel = new BroadcastChannel(name)).onmessage = hear;
    } catch {} // not allowed here
    clock = setInterval(look, CLOCK);
    become("connecting");
    compete(false);
  }

  function leave() {
    leading = false;
    race?.abort();
    trip.abort();
  }

  function stop() {
    leave();
    heard(Infinity);
    clearInterval(clock);
    channel = channel?.close();
  }

  // A page in the back/forward cache must hold nothing.
  const interrupt = () => trip.abort();
  const handlers = {
    online: interrupt,
    offline: interrupt,
    visibilitychange: look,
    pagehide: stop,
    pageshow: ({ persisted }) => persisted && start(),
  };

  function close() {
    for (const event in handlers) globalThis.removeEventListener?.(event, handlers[event]);
    listeners.clear();
    stop();
  }

  for (const { event, payload } of initial ?? []) take({ event, data: payload });
  return {
    get rows() { return getSnapshot(); },
    get state() { return state; },
    get error() { return error; },
    table: (name) => (tables[name] ??= [...rows].filter(([at]) => at.startsWith(prefix(name))).map(([, row]) => row)),
    getSnapshot,
    subscribe(listener) {
      if (!listeners.size) {
        for (const event in handlers) globalThis.addEventListener?.(event, handlers[event]);
        start();
      }
      listeners.add(listener);
      listener(getSnapshot());
      return () => listeners.delete(listener) && (listeners.size || close());
    },
    close,
  };
}

const failure = (what, status, wait) => Object.assign(new Error(`${what}, status ${status}`), { status, wait });

function attend(code) {
  try {
    code();
  } catch (problem) {
    console.error("tidings:", problem);
  }
}

const sleep = (time, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, time);
  signal.onabort = () => resolve(clearTimeout(timer));
});

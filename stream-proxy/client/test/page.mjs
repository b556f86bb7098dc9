// What a browser has and Node.js lacks, as far as the module uses it, and time that passes when a test says so.

const real = { now: Date.now, setTimeout: globalThis.setTimeout };
let skipped = 0;
Date.now = () => real.now() + skipped;

/** The clocks of lists that are in use. */
export const intervals = new Set();
globalThis.setInterval = (run) => {
  intervals.add(run);
  return run;
};
globalThis.clearInterval = (run) => intervals.delete(run);

/** How often the module looks at the clock. */
const CLOCK = 2_500;

/** Time passes on a machine that is awake. */
export function pass(milliseconds) {
  for (let passed = 0; passed < milliseconds; passed += CLOCK) sleep(CLOCK);
}

/** Time passes while the machine sleeps. */
export function sleep(milliseconds) {
  skipped += milliseconds;
  for (const run of [...intervals]) run();
}

/** The pauses that the module has made, in milliseconds. None of them takes any time, or each takes for ever. */
export const pauses = [];
export const endless = { are: false };
globalThis.setTimeout = (run, milliseconds, ...rest) => {
  if (!new Error().stack.includes("tidings-client.js")) return real.setTimeout(run, milliseconds, ...rest);
  pauses.push(milliseconds);
  return endless.are ? null : real.setTimeout(run, 0);
};

/** Jitter that can be foretold. */
export const RANDOM = 0.5;
Math.random = () => RANDOM;

const window = new EventTarget();
globalThis.addEventListener = window.addEventListener.bind(window);
globalThis.removeEventListener = window.removeEventListener.bind(window);

/** An event of the window. */
export const happens = (name, properties = {}) => window.dispatchEvent(Object.assign(new Event(name), properties));

/** Locks as in navigator.locks, for "tabs" that are all in this process. */
class Locks {
  #held = new Map();
  #queues = new Map();

  request(name, { signal, steal }, run) {
    return new Promise((resolve, reject) => {
      const entry = { run, resolve, reject };
      const queue = this.#queues.get(name) ?? [];
      this.#queues.set(name, queue);
      if (steal) {
        this.#held.get(name)?.reject(new DOMException("stolen", "AbortError"));
        this.#held.delete(name);
        queue.unshift(entry);
      } else queue.push(entry);
      signal?.addEventListener("abort", () => {
        if (!queue.includes(entry)) return;
        queue.splice(queue.indexOf(entry), 1);
        reject(signal.reason);
      });
      queueMicrotask(() => this.#grant(name));
    });
  }

  #grant(name) {
    const entry = this.#held.has(name) ? null : this.#queues.get(name).shift();
    if (!entry) return;
    this.#held.set(name, entry);
    const done = () => {
      if (this.#held.get(name) === entry) this.#held.delete(name);
      this.#grant(name);
    };
    Promise.resolve().then(() => entry.run()).then(entry.resolve, entry.reject).then(done);
  }
}

/** Sets what `navigator` has: locks, or nothing. */
export const setLocks = (locks) => Object.defineProperty(globalThis, "navigator", { value: locks && { locks }, configurable: true });
export const newLocks = () => new Locks();
setLocks(null);

/** How many pieces of streams the module has read. */
export let pieces = 0;
const { fetch } = globalThis;
globalThis.fetch = async (...all) => {
  const answer = await fetch(...all);
  const { body } = answer;
  const getReader = body.getReader.bind(body);
  body.getReader = () => {
    const reader = getReader();
    return { read: () => reader.read().then((piece) => (pieces += 1) && piece) };
  };
  return answer;
};

/** The channels between tabs, in the order in which they were opened. */
export const channels = [];
globalThis.BroadcastChannel = class extends BroadcastChannel {
  constructor(name) {
    super(name);
    channels.push(this);
  }
};

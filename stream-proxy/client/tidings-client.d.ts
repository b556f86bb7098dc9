/** An event of the stream. Rows of a snapshot have no id. The topic is known only when the module polls. */
export interface TidingsEvent {
  id?: string | null;
  event: string;
  data: string;
  topic?: string;
}

/** The columns that identify a row, or a function that returns a row's identity. */
export type Key<Row> = string | string[] | ((row: Row, table: string) => unknown);

/** Applies an event to `rows`, which it changes in place. An exception is logged, and the event is skipped. */
export type Reduce<Row> = (rows: Map<string, Row>, event: TidingsEvent) => void;

export type State =
  /** Not live yet, or just interrupted. */
  | "connecting"
  /** The rows are those in the database. */
  | "live"
  /** The server can't be reached. The module keeps trying. */
  | "offline"
  /** The server denies access. The module tries again only if `token` is a function, or if the server says when. */
  | "denied";

export interface Options<Row> {
  /** The topics. A topic that the path of `url` names need not be listed. */
  topics?: string[];
  /** What identifies a row; for several tables by their names, `schema.table` outside of `public`. The default is `"id"`. */
  key?: Key<Row> | Record<string, Key<Row>>;
  /** Parses a payload instead of `JSON.parse`. */
  parse?: (text: string) => unknown;
  /** Replaces `keep(key, parse)`, for payloads of your own. */
  reduce?: Reduce<Row>;
  /** The token, or a function that returns one and is called before each request. Without it, only cookies identify the client. */
  token?: string | (() => string | null | undefined | Promise<string | null | undefined>);
  /** As in `fetch`; `"include"` sends cookies to another origin. */
  credentials?: RequestCredentials;
  /** The result of `tidings.state(topics)`: the rows to start with, null if there are none. Needs `since`. */
  initial?: { event: string; payload: string }[] | null;
  /** The position that belongs to `initial`. */
  since?: string;
  /** Whether all tabs use one stream, by default true. Tabs with different texts here don't share. */
  share?: boolean | string;
  /** How long the first bytes of a stream may take before the module polls instead, by default 5,000 milliseconds. */
  patience?: number;
}

/** A list of rows that stays equal to those in the database. */
export interface Live<Row> {
  /** All rows. The array is the same until a row changes, and a row is the same object until it changes. */
  readonly rows: readonly Row[];
  readonly state: State;
  /** Why the last attempt failed, null while the list is live. */
  readonly error: (Error & { status?: number }) | null;
  /** The rows of one table; `schema.table` outside of `public`. */
  table<R = Row>(name: string): readonly R[];
  /**
   * Calls the listener now, and after each change of the rows or the state. Returns a function that removes it.
   * The stream is open while there are listeners. When a listener is added later, the stream continues where it was.
   */
  subscribe(listener: (rows: readonly Row[]) => void): () => void;
  /** The same as `rows`: for React's `useSyncExternalStore`. */
  getSnapshot(): readonly Row[];
  /** Removes all listeners and so ends the stream. The rows stay. */
  close(): void;
}

/** A live list: rows first, then every change. */
export function live<Row = Record<string, unknown>>(url: string | URL, options?: Options<Row>): Live<Row>;

/** The reducer that `live` uses: keeps the rows of watches with the default payload. */
export function keep<Row = Record<string, unknown>>(key?: Options<Row>["key"], parse?: (text: string) => unknown): Reduce<Row>;

/** A parser of text/event-stream. Feed it pieces of text, cut anywhere; `other` gets comments (as `""`) and `retry`. */
export function parser(emit: (event: TidingsEvent) => void, other?: (field: string, value: string) => void): (text: string) => void;

/** The stream of what all processes tell: read as it comes, and asked for again when it ends. */

import { Refused, SignedOut } from "./session.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {{name: string, data: unknown}} Told one event, its JSON parsed */

/**
 * How the connection is. `since`: when it began to be so, in ms since the epoch.
 * @typedef {{name: "connecting", since: number}
 *   | {name: "live", since: number}
 *   | {name: "lost", since: number, reason: string}
 *   | {name: "refused", since: number, reason: string}} State
 */

/** Who hears nothing for so long asks anew: something comes every second. */
const SILENCE_MS = 10_000;
const FIRST_MS = 1_000;
const MOST_MS = 30_000;
/** After an end that the gateway chose: it drains, so all consoles come back at once. */
const [SOONEST_MS, LATEST_MS] = [1_000, 5_000];

/** Reads server-sent events out of text that comes in pieces. */
export class Parser {
  #rest = "";

  /**
   * The events that are complete with this piece.
   * @param {string} text
   * @returns {{name: string, data: string}[]}
   */
  feed(text) {
    const blocks = (this.#rest + text).split("\n\n");
    this.#rest = blocks.pop() ?? "";
    return blocks.map(block => ({ name: field(block, "event"), data: field(block, "data") }))
      .filter(({ name }) => name);
  }
}

/**
 * How long to wait before the next try: anything up to a span that doubles with each failure, so that consoles do not
 * come all at once.
 * @param {number} failures in a row
 * @param {number} random 0 to 1
 */
export function backoff(failures, random) {
  return random * Math.min(MOST_MS, FIRST_MS * 2 ** failures);
}

/**
 * Hand every event to `heard`, and every change of the connection to `changed`, until `signal` aborts or the token is
 * refused.
 * @param {Session} session
 * @param {{heard: (told: Told) => void, changed: (state: State) => void, signal: AbortSignal, sooner: EventTarget}} to
 *   `sooner`: an `online` event there ends a wait
 */
export async function follow(session, { heard, changed, signal, sooner }) {
  let failures = 0;
  let lost = 0;
  while (!signal.aborted) {
    let waitMs;
    let reason = "the gateway ended the stream";
    if (!lost) changed({ name: "connecting", since: Date.now() });
    try {
      await read(session, signal, heard, () => {
        failures = lost = 0;
        changed({ name: "live", since: Date.now() });
      });
      waitMs = SOONEST_MS + Math.random() * (LATEST_MS - SOONEST_MS);
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof SignedOut) {
        changed({ name: "refused", since: Date.now(), reason: error.message });
        return;
      }
      reason = error instanceof Refused ? error.message : "the gateway does not answer";
      waitMs = Math.max(backoff(failures++, Math.random()), error instanceof Refused ? error.retryMs ?? 0 : 0);
    }
    lost ||= Date.now();
    changed({ name: "lost", since: lost, reason });
    await pause(waitMs, signal, sooner);
  }
}

/**
 * One stream, to its end.
 * @param {Session} session
 * @param {AbortSignal} signal
 * @param {(told: Told) => void} heard
 * @param {() => void} opened
 */
async function read(session, signal, heard, opened) {
  const silent = new AbortController();
  let timer = setTimeout(() => silent.abort(), SILENCE_MS);
  try {
    const answer = await session.ask("/console/stream", { signal: AbortSignal.any([signal, silent.signal]) });
    opened();
    const parser = new Parser();
    for await (const text of textOf(answer)) {
      clearTimeout(timer);
      timer = setTimeout(() => silent.abort(), SILENCE_MS);
      for (const { name, data } of parser.feed(text)) heard({ name, data: JSON.parse(data) });
    }
  } finally {
    clearTimeout(timer);
    silent.abort();
  }
}

/** @param {Response} answer */
async function* textOf(answer) {
  if (answer.body === null) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

/**
 * @param {number} ms
 * @param {AbortSignal} signal
 * @param {EventTarget} sooner
 */
async function pause(ms, signal, sooner) {
  await new Promise(resolve => {
    const over = new AbortController();
    const end = () => { over.abort(); clearTimeout(timer); resolve(undefined); };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end, { signal: over.signal });
    sooner.addEventListener("online", end, { signal: over.signal });
  });
}

/**
 * @param {string} block
 * @param {string} name
 */
function field(block, name) {
  const start = `${name}: `;
  return block.split("\n").filter(line => line.startsWith(start)).map(line => line.slice(start.length)).join("\n");
}

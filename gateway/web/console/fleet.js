/** All processes together: who there is, and what they count as one. No I/O and no clock but the one handed in. */

import { History, SILENT_MS, HOUR_MS, quantile } from "./numbers.js";

/** @typedef {import("./numbers.js").Description} Description */

/**
 * @typedef {object} Samples a `samples` event
 * @property {number} at
 * @property {string} here
 * @property {{process: string, at: number, values: number[]}[]} samples
 */

/**
 * @typedef {object} Facts a `facts` event
 * @property {number} at
 * @property {Record<string, Record<string, number | null>>} backends
 * @property {Cost | null} cost
 */

/**
 * @typedef {object} Cost
 * @property {number} dollars
 * @property {number | null} seconds
 * @property {number | null} per_month
 * @property {number | null} per_million_videos
 * @property {string} prices
 * @property {{store: string, dollars: number}[]} stores
 */

const NAMES = new Intl.Collator("en", { numeric: true });

/** A process, as far as it is known. `heard`: ms of the page's own clock. */
export class Process {
  /**
   * @param {Description} description
   * @param {number} heard
   */
  constructor(description, heard) {
    this.name = description.process;
    this.startedAt = description.started_at;
    this.heard = heard;
    this.history = new History(description);
  }

  /** What it does: `serve`, `serve-0` and so on, `worker`. */
  get role() {
    return this.name.slice(this.name.lastIndexOf("/") + 1).replace(/\.[^.]*$/, "");
  }

  /** Whether apps are connected to it. */
  get serves() { return this.role !== "worker"; }

  /** Whether it sends wakeups; the one of several that serve leave that to a worker. */
  get works() { return !this.role.startsWith("serve-"); }
}

/** Takes what the stream tells, and answers what is now and what was, of all processes. */
export class Fleet {
  /** The gateway's clock, as of the newest samples; 0 before the first. */
  at = 0;
  /** The process that the page is connected to. */
  here = "";
  /** @type {Facts | null} */
  facts = null;
  /** @type {Map<string, Process>} those that are there */
  #present = new Map();
  /** @type {Map<string, Process>} those that ended within the hour: their past counts */
  #gone = new Map();
  /** @type {WeakMap<readonly number[], Map<number, readonly number[]>>} */
  #shifted = new WeakMap();

  /** Who is there, by name. */
  get processes() {
    return [...this.#present.values()].sort((one, other) => NAMES.compare(one.name, other.name));
  }

  /**
   * @param {Description} description
   * @param {number} now ms of the page's own clock
   */
  describe(description, now) {
    this.#gone.delete(description.process);
    this.#present.set(description.process, new Process(description, now));
  }

  /**
   * @param {Samples} event
   * @param {number} now ms of the page's own clock
   */
  take({ at, here, samples }, now) {
    this.at = at;
    this.here = here;
    for (const { process: name, at: sampledAt, values } of samples) {
      const process = this.#present.get(name) ?? this.#gone.get(name);
      if (process === undefined) continue;
      process.history.append(sampledAt, values);
      process.heard = now;
      this.#gone.delete(name);
      this.#present.set(name, process);
    }
    this.#bury(now);
  }

  /**
   * A gauge, added up over all processes.
   * @param {string} name
   */
  sum(name) { return this.processes.reduce((sum, { history }) => sum + history.level(name), 0); }

  /**
   * A gauge, where it is highest; 0 without any process.
   * @param {string} name
   */
  max(name) { return Math.max(0, ...this.processes.map(({ history }) => history.level(name))); }

  /**
   * By how much counters grew in the last `ms`.
   * @param {readonly string[]} names
   * @param {number} ms
   */
  increase(names, ms) { return this.#all.reduce((sum, { history }) => sum + this.#since(history, names, ms), 0); }

  /**
   * How much counters grow in a second, over the last `ms`.
   * @param {readonly string[]} names
   * @param {number} ms
   */
  rate(names, ms) {
    return this.processes.reduce((sum, { history }) => {
      const grown = history.increase(names, ms);
      return sum + (grown.ms ? grown.count * 1000 / grown.ms : 0);
    }, 0);
  }

  /**
   * Quantiles of a histogram over the last `ms`, each null where it counted nothing.
   * @param {string} name
   * @param {readonly number[]} shares
   * @param {number} ms
   */
  quantiles(name, shares, ms) {
    return this.quantileLines(name, shares, [this.at], ms).map(([value]) => value);
  }

  /**
   * A gauge, added up, at each of `times`; null where no process was heard.
   * @param {string} name
   * @param {readonly number[]} times
   */
  sumLine(name, times) { return this.#levels(name, times, (one, other) => one + other); }

  /**
   * A gauge, where it was highest, at each of `times`; null where no process was heard.
   * @param {string} name
   * @param {readonly number[]} times
   */
  maxLine(name, times) { return this.#levels(name, times, Math.max); }

  /**
   * By how much counters grew in the `ms` before each of `times`; null where no process was heard.
   * @param {readonly string[]} names
   * @param {readonly number[]} times
   * @param {number} ms
   * @returns {(number | null)[]}
   */
  increaseLine(names, times, ms) {
    const sums = this.#increases(() => names, times, ms);
    return times.map((at, index) => (this.#isKnown(at, ms) ? sums[index] : null));
  }

  /**
   * Quantiles of a histogram over the `ms` before each of `times`: a line for each of `shares`.
   * @param {string} name
   * @param {readonly number[]} shares
   * @param {readonly number[]} times
   * @param {number} ms
   * @returns {(number | null)[][]}
   */
  quantileLines(name, shares, times, ms) {
    const bounds = [...new Set(this.#all.flatMap(({ history }) => history.buckets(name).map(({ bound }) => bound)))];
    bounds.sort((one, other) => one - other);
    const counts = bounds.map(bound => this.#increases(history => {
      const found = history.buckets(name).findLast(bucket => bucket.bound <= bound);
      return found === undefined ? [] : [found.series];
    }, times, ms));
    return shares.map(share => times.map((_, index) => quantile(bounds, counts.map(line => line[index]), share)));
  }

  get #all() { return [...this.#present.values(), ...this.#gone.values()]; }

  /**
   * @param {(history: History) => readonly string[]} namesOf
   * @param {readonly number[]} times
   * @param {number} ms
   */
  #increases(namesOf, times, ms) {
    const sums = new Float64Array(times.length);
    const before = this.#before(times, ms);
    for (const { history } of this.#all) {
      const names = namesOf(history);
      const from = history.totals(names, before);
      history.totals(names, times).forEach((total, index) => { sums[index] += total - from[index]; });
    }
    return sums;
  }

  /**
   * The times that lie `ms` before: the same array for the same question, so that histories know it again.
   * @param {readonly number[]} times
   * @param {number} ms
   */
  #before(times, ms) {
    const known = this.#shifted.get(times) ?? new Map();
    this.#shifted.set(times, known);
    if (!known.has(ms)) known.set(ms, times.map(at => at - ms));
    return known.get(ms);
  }

  /**
   * @param {string} name
   * @param {readonly number[]} times
   * @param {(one: number, other: number) => number} together
   */
  #levels(name, times, together) {
    /** @type {(number | null)[]} */
    const line = times.map(() => null);
    for (const { history } of this.#all) {
      history.levels(name, times).forEach((level, index) => {
        if (Number.isNaN(level)) return;
        const before = line[index];
        line[index] = before === null ? level : together(before, level);
      });
    }
    return line;
  }

  /**
   * @param {History} history
   * @param {readonly string[]} names
   * @param {number} ms
   */
  #since(history, names, ms) {
    const [before, now] = history.totals(names, [this.at - ms, Math.max(this.at, history.last)]);
    return now - before;
  }

  /**
   * @param {number} at
   * @param {number} ms
   */
  #isKnown(at, ms) {
    return this.#all.some(({ history: { knownFrom, first, last } }) => (
      knownFrom <= at - ms && first <= at && at <= last + SILENT_MS
    ));
  }

  /** @param {number} now */
  #bury(now) {
    for (const [name, process] of this.#present) {
      if (now - process.heard <= SILENT_MS) continue;
      this.#present.delete(name);
      this.#gone.set(name, process);
    }
    for (const [name, { history }] of this.#gone) if (history.last < this.at - HOUR_MS) this.#gone.delete(name);
  }
}

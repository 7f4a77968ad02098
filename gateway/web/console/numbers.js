/**
 * What one process counts, over time: what it told, and what follows from that. No I/O and no clock.
 *
 * Times are whole milliseconds since the epoch. Counters only ever grow, gauges are what they are.
 */

/** The series that are no counters. */
export const GAUGES = new Set([
  "sockets", "held_polls", "due_age_ms", "bus_down", "breaker_open_apns", "breaker_open_fcm", "memory_bytes",
]);

export const HOUR_MS = 3_600_000;

/** How long every sample is kept. Older ones are thinned to one for each step of the hour. */
export const FRESH_MS = 300_000;

/** Who is silent for longer than this is not there any more. */
export const SILENT_MS = 15_000;

/**
 * @typedef {object} Description a `process` event
 * @property {string} process
 * @property {number} started_at
 * @property {number} step_ms
 * @property {string[]} series
 * @property {number[][]} hour
 */

/** The samples of one process, an hour of them at most. */
export class History {
  /** @type {Map<string, number>} */
  #places;
  /** @type {boolean[]} */
  #grows;
  /** @type {number[]} */
  #times = [];
  /** @type {Float64Array[]} counters without their falls */
  #rows = [];
  /** @type {Float64Array} what each counter had reached before it fell */
  #carried;
  /** @type {readonly number[] | null} the newest sample, as it was told */
  #told = null;
  #startedAt;
  #stepMs;
  #thinned = 0;
  /** @type {Map<string, {series: string, bound: number}[]>} those that were asked for: names do not change */
  #buckets = new Map();
  /** @type {WeakMap<readonly number[], {from: Int32Array, share: Float64Array}>} as long as no sample is added */
  #walks = new WeakMap();

  /** @param {Description} description */
  constructor({ series, started_at, step_ms, hour }) {
    this.#places = new Map(series.map((name, place) => [name, place]));
    this.#grows = series.map(name => !GAUGES.has(name));
    this.#carried = new Float64Array(series.length);
    this.#startedAt = started_at;
    this.#stepMs = step_ms;
    for (const [at, ...values] of absolute(hour)) this.append(at, values);
  }

  /** Time of the oldest sample, or Infinity where there is none. */
  get first() { return this.#times[0] ?? Infinity; }

  /** From when on it is known what was counted: always, where the first sample came with the start. */
  get knownFrom() { return this.first === this.#startedAt ? -Infinity : this.first; }

  /** How many samples are kept. */
  get size() { return this.#times.length; }

  /** Time of the newest sample, or -Infinity where there is none. */
  get last() { return this.#times.at(-1) ?? -Infinity; }

  /**
   * Take one more sample, in the order of the series. One that is not newer than the last changes nothing. A counter
   * that fell began anew: it goes on from where it was.
   * @param {number} at
   * @param {readonly number[]} values
   */
  append(at, values) {
    if (at <= this.last) return;
    if (this.#told === null && at > this.#startedAt && at - this.#startedAt <= 2 * this.#stepMs) {
      this.#push(this.#startedAt, Float64Array.from(this.#grows, grows => (grows ? 0 : NaN)));
    }
    const told = this.#told;
    this.#push(at, Float64Array.from(values, (value, place) => {
      if (!this.#grows[place]) return value;
      if (told !== null && value < told[place]) this.#carried[place] += told[place];
      return value + this.#carried[place];
    }));
    this.#told = values;
    this.#thin(at);
    this.#walks = new WeakMap();
  }

  /**
   * A value as it is now; 0 where the process does not tell it.
   * @param {string} name
   */
  level(name) {
    const place = this.#places.get(name);
    return place === undefined ? 0 : this.#rows.at(-1)?.[place] ?? 0;
  }

  /**
   * A gauge at each of `times`; NaN where nothing was heard in the quarter of a minute before.
   * @param {string} name
   * @param {readonly number[]} times ascending
   */
  levels(name, times) {
    const place = this.#places.get(name);
    const { from } = this.#walk(times);
    return Float64Array.from(times, (at, index) => {
      const sampledAt = this.#times[from[index]];
      if (place === undefined || !(sampledAt <= at && at - sampledAt <= SILENT_MS)) return NaN;
      return this.#rows[from[index]][place];
    });
  }

  /**
   * How far counters, taken together, had come at each of `times`: in a straight line from sample to sample, and level
   * before the first and after the last, since nothing is known of them there.
   * @param {readonly string[]} names
   * @param {readonly number[]} times ascending
   */
  totals(names, times) {
    const totals = new Float64Array(times.length);
    if (!this.#times.length) return totals;
    const { from, share } = this.#walk(times);
    for (const name of names) {
      const place = this.#places.get(name);
      if (place === undefined) continue;
      for (let index = 0; index < totals.length; index += 1) {
        const value = this.#rows[from[index]][place];
        totals[index] += value;
        if (share[index]) totals[index] += (this.#rows[from[index] + 1][place] - value) * share[index];
      }
    }
    return totals;
  }

  /**
   * By how much counters, taken together, grew in the `ms` before the newest sample, and in how many ms that was: less
   * where the process is younger.
   * @param {readonly string[]} names
   * @param {number} ms
   */
  increase(names, ms) {
    if (!this.#times.length) return { count: 0, ms: 0 };
    const from = Math.max(this.last - ms, this.first);
    const [before, now] = this.totals(names, [from, this.last]);
    return { count: now - before, ms: this.last - from };
  }

  /**
   * The buckets of a histogram, in order of their bounds.
   * @param {string} name
   */
  buckets(name) {
    const known = this.#buckets.get(name);
    if (known !== undefined) return known;
    const prefix = `${name}_le_`;
    const found = [...this.#places.keys()]
      .filter(series => series.startsWith(prefix))
      .map(series => ({ series, bound: boundOf(series.slice(prefix.length)) }))
      .sort((one, other) => one.bound - other.bound);
    this.#buckets.set(name, found);
    return found;
  }

  /**
   * @param {number} at
   * @param {Float64Array} row
   */
  #push(at, row) {
    this.#times.push(at);
    this.#rows.push(row);
  }

  /** @param {number} now */
  #thin(now) {
    const slot = (/** @type {number} */ index) => Math.floor(this.#times[index] / this.#stepMs);
    while (this.#times[this.#thinned] < now - FRESH_MS) {
      if (slot(this.#thinned) === slot(this.#thinned + 1)) this.#drop(this.#thinned);
      else this.#thinned += 1;
    }
    while (this.#times[0] < now - HOUR_MS - 2 * this.#stepMs) {
      this.#drop(0);
      this.#thinned = Math.max(this.#thinned - 1, 0);
    }
  }

  /** @param {number} index */
  #drop(index) {
    this.#times.splice(index, 1);
    this.#rows.splice(index, 1);
  }

  /**
   * For each of `times`, the sample that is not later, or else the first, and the share of the way to the next one. It
   * is found once for all series that are asked for at the same times.
   * @param {readonly number[]} times
   */
  #walk(times) {
    const known = this.#walks.get(times);
    if (known !== undefined) return known;
    const found = { from: new Int32Array(times.length), share: new Float64Array(times.length) };
    let before = this.#before(times[0]);
    times.forEach((at, index) => {
      while (this.#times[before + 1] <= at) before += 1;
      const [from, to] = [this.#times[before], this.#times[before + 1]];
      found.from[index] = Math.max(before, 0);
      found.share[index] = before < 0 || to === undefined ? 0 : (at - from) / (to - from);
    });
    this.#walks.set(times, found);
    return found;
  }

  /**
   * The index of the newest sample that is not later, -1 for none.
   * @param {number} at
   */
  #before(at) {
    let [low, high] = [0, this.#times.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#times[middle] <= at) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }
}

/**
 * Rows of which each but the first is told as the difference from the one before it.
 * @param {number[][]} hour
 */
export function absolute(hour) {
  /** @type {number[][]} */
  const rows = [];
  for (const row of hour) {
    const before = rows.at(-1);
    rows.push(before === undefined ? row : row.map((value, place) => before[place] + value));
  }
  return rows;
}

/**
 * What a share `q` of all that a histogram counted stayed below, supposing that they lie evenly within each bucket;
 * what lies beyond the last finite bound counts as that. Null where it counted nothing.
 * @param {ArrayLike<number>} bounds ascending, Infinity last
 * @param {ArrayLike<number>} counts how many were at most so much
 * @param {number} q 0 to 1
 */
export function quantile(bounds, counts, q) {
  const last = bounds.length - 1;
  if (last < 1 || !(counts[last] > 1e-6)) return null;
  const rank = q * counts[last];
  let place = 0;
  while (place < last && counts[place] < rank) place += 1;
  const [from, below] = place ? [bounds[place - 1], counts[place - 1]] : [0, 0];
  if (place === last) return from;
  return counts[place] > below ? from + (bounds[place] - from) * (rank - below) / (counts[place] - below) : from;
}

/**
 * Times at whole steps, the last one not later than `end`.
 * @param {number} end
 * @param {number} spanMs
 * @param {number} stepMs
 */
export function grid(end, spanMs, stepMs) {
  const last = Math.floor(end / stepMs) * stepMs;
  return Array.from({ length: spanMs / stepMs + 1 }, (_, index) => last - spanMs + index * stepMs);
}

/** @param {string} text */
function boundOf(text) {
  return text === "inf" ? Infinity : Number(text);
}

/** Which lines there are: what the charts of the last hour, or of the last minutes, are made from. */

import { amount, bytes, percent, span } from "./format.js";
import { CALLS, MINUTE_MS, OUTCOMES, PLATFORMS, PROVIDERS, STATUSES } from "./summary.js";

/** @typedef {import("./fleet.js").Fleet} Fleet */
/** @typedef {(number | null)[]} Values */
/** @typedef {{key: string, label: string, values: Values}} Series */
/** @typedef {{times: number[], stepMs: number}} Reach the times that are shown, and how far they lie apart */

/**
 * @typedef {object} Chart
 * @property {string} key
 * @property {string} title
 * @property {string} unit what is counted, in a word or two; empty where the values say it
 * @property {(value: number | null | undefined) => string} format
 * @property {boolean} [wide] whether its values range over powers of ten
 * @property {string} nothing what is said where there is nothing to show
 * @property {(fleet: Fleet, reach: Reach) => Series[]} lines
 */

/** More lines than these cannot be told apart. */
const MOST_PROCESSES = 8;

/** @type {readonly Chart[]} */
export const CHARTS = [
  {
    key: "sockets", title: "Sockets", unit: "open", format: amount, nothing: "No process was heard.",
    lines: (fleet, { times }) => [
      { key: "sockets", label: "sockets", values: fleet.sumLine("sockets", times) },
      { key: "polls", label: "held polls", values: fleet.sumLine("held_polls", times) },
    ],
  },
  {
    key: "traffic", title: "Packets and calls", unit: "per second", format: amount, nothing: "No process was heard.",
    lines: (fleet, reach) => [
      { key: "packets", label: "packets", values: rateLine(fleet, ["packets"], reach) },
      { key: "calls", label: "calls", values: rateLine(fleet, CALLS, reach) },
      { key: "frames", label: "messages from apps", values: rateLine(fleet, ["frames"], reach) },
    ],
  },
  {
    key: "latency", title: "From change to packet", unit: "", format: span, wide: true,
    nothing: "No packet went to a socket.",
    lines: (fleet, { times }) => {
      const [p50, p90, p99] = fleet.quantileLines("packet_seconds", [0.5, 0.9, 0.99], times, MINUTE_MS);
      return [
        { key: "p50", label: "p50", values: p50 },
        { key: "p90", label: "p90", values: p90 },
        { key: "p99", label: "p99", values: p99 },
      ];
    },
  },
  {
    key: "videos", title: "Videos that reached", unit: "per minute", format: amount, nothing: "No process was heard.",
    lines: (fleet, { times }) => STATUSES.map(status => ({
      key: status, label: status, values: fleet.increaseLine([`videos_${status}`], times, MINUTE_MS),
    })),
  },
  {
    key: "steps", title: "Since the status before", unit: "half within", format: span, wide: true,
    nothing: "No video reached a status.",
    lines: (fleet, { times }) => STATUSES.map(status => ({
      key: status, label: status,
      values: fleet.quantileLines(`video_seconds_${status}`, [0.5], times, 5 * MINUTE_MS)[0],
    })),
  },
  {
    key: "pushes", title: "Wakeups", unit: "per minute", format: amount, nothing: "No push was sent.",
    lines: (fleet, { times }) => PLATFORMS.flatMap(platform => [
      ...OUTCOMES.map(outcome => ({ name: `pushes_${platform}_${outcome}`, label: outcome.replace("_", " ") })),
      { name: `wakeups_held_${platform}`, label: "put off" },
    ].map(({ name, label }) => ({
      key: name, label: `${PROVIDERS[platform]} ${label}`, values: fleet.increaseLine([name], times, MINUTE_MS),
    }))).filter(({ values }) => values.some(value => value !== null && value > 0)),
  },
  {
    key: "due", title: "Oldest due, news to push", unit: "", format: span, nothing: "No worker was heard.",
    lines: (fleet, { times }) => [
      { key: "due", label: "oldest due", values: fleet.maxLine("due_age_ms", times).map(ms => ms && ms / 1000) },
      {
        key: "p90", label: "p90 to push",
        values: fleet.quantileLines("wakeup_seconds", [0.9], times, 5 * MINUTE_MS)[0],
      },
    ],
  },
  {
    key: "cpu", title: "CPU", unit: "of a core", format: percent, nothing: "No process was heard.",
    lines: (fleet, { times, stepMs }) => most(fleet.processes.map(({ name, history }) => {
      const windowMs = Math.max(stepMs, 5_000);
      const from = history.totals(["cpu_us"], times.map(at => at - windowMs));
      const to = history.totals(["cpu_us"], times);
      const values = times.map((at, index) => (
        at < history.first || at - windowMs < history.knownFrom || at > history.last + stepMs
          ? null
          : (to[index] - from[index]) / 1000 / windowMs
      ));
      return { key: name, label: name, values };
    })),
  },
  {
    key: "memory", title: "Memory", unit: "resident", format: bytes, nothing: "No process was heard.",
    lines: (fleet, { times }) => most(fleet.processes.map(({ name, history }) => ({
      key: name, label: name,
      values: Array.from(history.levels("memory_bytes", times), level => (Number.isNaN(level) ? null : level)),
    }))),
  },
];

/**
 * Smoothed over five seconds at least, so that single calls do not make a fence of it.
 * @param {Fleet} fleet
 * @param {readonly string[]} names
 * @param {Reach} reach
 */
function rateLine(fleet, names, { times, stepMs }) {
  const windowMs = Math.max(stepMs, 5_000);
  return fleet.increaseLine(names, times, windowMs).map(grown => grown && grown * 1000 / windowMs);
}

/**
 * Those that lead at the end, in the order of their names.
 * @param {Series[]} series
 */
function most(series) {
  if (series.length <= MOST_PROCESSES) return series;
  const last = (/** @type {Series} */ { values }) => values.findLast(value => value !== null) ?? 0;
  const leading = new Set([...series].sort((one, other) => last(other) - last(one)).slice(0, MOST_PROCESSES));
  return series.filter(line => leading.has(line));
}

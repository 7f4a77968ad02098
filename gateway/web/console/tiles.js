/** The numbers of now, each with where it came from in the last two minutes. */

import { element, keyed, mark, say, shape } from "./dom.js";
import { NONE, age, amount, bytes, count, money, percent, span } from "./format.js";
import { grid } from "./numbers.js";
import { CALLS, MINUTE_MS, pushes } from "./summary.js";

/** @typedef {import("./fleet.js").Fleet} Fleet */
/** @typedef {import("./summary.js").Summary} Summary */
/** @typedef {(fleet: Fleet, times: readonly number[]) => (number | null)[]} Line */

const SPARK_MS = 120_000;
const STEP_MS = 2_000;
const [WIDTH, HEIGHT] = [120, 34];

/**
 * `value`: a number and, after a space, its unit.
 * @typedef {{key: string, label: string, value: (now: Summary) => string, more: (now: Summary) => string,
 *   line: Line | null}} Tile
 */

/** @type {Tile[]} */
const TILES = [
  {
    key: "sockets", label: "Sockets", value: now => count(now.sockets), more: now => `${count(now.polls)} held polls`,
    line: (fleet, times) => fleet.sumLine("sockets", times),
  },
  {
    key: "calls", label: "Calls", value: now => `${amount(now.callRate)} /s`,
    more: now => (now.callP99 === null ? "none lately" : `99 of 100 within ${span(now.callP99)}`),
    line: (fleet, times) => fleet.increaseLine(CALLS, times, 2 * STEP_MS),
  },
  {
    key: "packets", label: "Packets", value: now => `${amount(now.packetRate)} /s`,
    more: now => `${count(now.late)} late in 5 minutes`,
    line: (fleet, times) => fleet.increaseLine(["packets"], times, 2 * STEP_MS),
  },
  {
    key: "latency", label: "Change to packet", value: now => span(now.packetTimes.p50),
    more: ({ packetTimes: { p90, p99 } }) => `p90 ${span(p90)}, p99 ${span(p99)}`,
    line: (fleet, times) => fleet.quantileLines("packet_seconds", [0.5], times, MINUTE_MS)[0],
  },
  {
    key: "videos", label: "Videos", value: now => `${count(now.uploaded)} /min`,
    more: now => `${count(now.viewed)} viewed`,
    line: (fleet, times) => fleet.increaseLine(["videos_uploaded"], times, MINUTE_MS),
  },
  {
    key: "pushes", label: "Pushes accepted", value: now => `${count(now.accepted)} /min`,
    more: now => `9 of 10 within ${span(now.wakeupP90)}`,
    line: (fleet, times) => fleet.increaseLine(pushes("accepted"), times, MINUTE_MS),
  },
  {
    key: "due", label: "Oldest due", value: now => span(now.due),
    more: now => (now.working ? `${count(now.working)} ${now.working === 1 ? "worker" : "workers"}` : "no worker"),
    line: (fleet, times) => fleet.maxLine("due_age_ms", times),
  },
  {
    key: "cpu", label: "CPU", value: now => `${amount(now.cores)} ${now.cores === 1 ? "core" : "cores"}`,
    more: now => `busiest process ${percent(now.busiest)}`,
    line: (fleet, times) => fleet.increaseLine(["cpu_us"], times, 2 * STEP_MS),
  },
  {
    key: "memory", label: "Memory", value: now => bytes(now.memory),
    more: now => `${count(now.processes)} ${now.processes === 1 ? "process" : "processes"}`,
    line: (fleet, times) => fleet.sumLine("memory_bytes", times),
  },
  {
    key: "cost", label: "Cost at this pace", line: null,
    value: ({ cost }) => (cost ? `${money(cost.per_month)} /month` : NONE),
    more: ({ cost }) => (cost ? `${money(cost.dollars)} in ${age(cost.seconds)}` : "no store here has a price"),
  },
];

/**
 * Show them as they are now.
 * @param {HTMLElement} list
 * @param {Fleet} fleet
 * @param {Summary} now
 */
export function showTiles(list, fleet, now) {
  const times = grid(fleet.at - STEP_MS, SPARK_MS, STEP_MS);
  keyed(list, TILES, tile => tile.key, makeTile, (made, tile) => {
    const [value, ...unit] = tile.value(now).split(" ");
    const [number, small, more] = made.querySelectorAll("[data-part]");
    say(number, value);
    say(small, ["", ...unit].join(" "));
    say(more, tile.more(now));
    if (tile.line !== null) draw(made, tile.line(fleet, times));
  });
}

/** @param {Tile} tile */
function makeTile({ label, line }) {
  const made = element("li", { class: "tile" },
    element("h3", {}, label),
    element("p", { class: "value" },
      element("span", { "data-part": "value" }), element("span", { class: "unit", "data-part": "unit" })),
    element("p", { class: "more", "data-part": "more" }),
  );
  if (line !== null) made.append(spark());
  return made;
}

function spark() {
  const seen = { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" };
  return shape("svg", seen, shape("polygon"), shape("polyline"));
}

/**
 * @param {HTMLElement} tile
 * @param {(number | null)[]} line
 */
function draw(tile, line) {
  const most = Math.max(1e-9, ...line.map(value => value ?? 0));
  const points = line.flatMap((value, index) => (value === null ? [] : [{
    x: (index * WIDTH / (line.length - 1)).toFixed(1), y: (HEIGHT - 2 - value / most * (HEIGHT - 6)).toFixed(1),
  }]));
  const along = points.map(({ x, y }) => `${x},${y}`).join(" ");
  const [area, stroke] = tile.querySelectorAll("polygon, polyline");
  mark(stroke, "points", along);
  const [first, last] = [points.at(0), points.at(-1)];
  mark(area, "points", first && last ? `${first.x},${HEIGHT} ${along} ${last.x},${HEIGHT}` : "");
}

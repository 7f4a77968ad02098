/** What is better read than looked at: the videos and wakeups of the hour, each process, what it costs. */

import { element, keyed, mark, say } from "./dom.js";
import { NONE, age, amount, bytes, count, moment, money, percent, relative, span } from "./format.js";
import { HOUR_MS } from "./numbers.js";
import { CALLS, OUTCOMES, PLATFORMS, PROVIDERS, STATUSES } from "./summary.js";
import { LIMITS } from "./verdicts.js";

/** @typedef {import("./fleet.js").Fleet} Fleet */
/** @typedef {import("./fleet.js").Process} Process */
/** @typedef {import("./fleet.js").Cost} Cost */

const NOW_MS = 5_000;
/** Samples come every second: who missed some is not well. */
const LATE_MS = 4_000;

/**
 * How many videos reached each status within the hour, and how long it took them.
 * @param {HTMLElement} body
 * @param {Fleet} fleet
 */
export function showVideos(body, fleet) {
  keyed(body, STATUSES, status => status, status => row(status, 3), (made, status) => {
    const times = fleet.quantiles(`video_seconds_${status}`, [0.5, 0.9], HOUR_MS);
    fill(made, [count(fleet.increase([`videos_${status}`], HOUR_MS)), ...times.map(span)]);
  });
}

/**
 * The pushes of the hour.
 * @param {HTMLElement} body
 * @param {HTMLElement} times where it is said how long they took
 * @param {Fleet} fleet
 */
export function showPushes(body, times, fleet) {
  keyed(body, PLATFORMS, platform => platform, platform => row(PROVIDERS[platform], 5), (made, platform) => {
    const names = [...OUTCOMES.map(outcome => `pushes_${platform}_${outcome}`), `wakeups_held_${platform}`];
    fill(made, names.map(name => count(fleet.increase([name], HOUR_MS))));
  });
  const [p50, p90] = fleet.quantiles("wakeup_seconds", [0.5, 0.9], HOUR_MS);
  const [provider] = fleet.quantiles("push_seconds", [0.9], HOUR_MS);
  say(times, p50 === null
    ? "No push was accepted within the hour."
    : `From news to its first push: half within ${span(p50)}, 9 of 10 within ${span(p90)}. `
      + `Providers answer 9 of 10 within ${span(provider)}.`);
}

/**
 * Each process as it is now.
 * @param {HTMLElement} body
 * @param {Fleet} fleet
 * @param {number} now ms of the page's own clock
 */
export function showProcesses(body, fleet, now) {
  keyed(body, fleet.processes, ({ name }) => name, ({ name }) => row(name, 10), (made, process) => {
    const { name, history, startedAt, heard } = process;
    const answers = fleet.facts?.backends[name];
    const cpu = rate(process, ["cpu_us"]) / 1e6;
    fill(made, [
      age((fleet.at - startedAt) / 1000),
      count(history.level("sockets")),
      count(history.level("held_polls")),
      amount(rate(process, CALLS)),
      amount(rate(process, ["packets"])),
      percent(cpu),
      bytes(history.level("memory_bytes")),
      answered(answers, "documents"),
      answered(answers, "objects"),
      now - heard < LATE_MS ? "now" : `${age((now - heard) / 1000)} ago`,
    ]);
    const cells = made.cells;
    mark(cells[1], "title", `since ${moment(startedAt)}`);
    mark(cells[6], "data-grade", grade(cpu, LIMITS.busy));
    mark(cells[8], "data-grade", backendGrade(answers?.documents));
    mark(cells[9], "data-grade", backendGrade(answers?.objects));
    mark(cells[10], "data-grade", now - heard < LATE_MS ? null : "bad");
    here(cells[0], name === fleet.here);
  });
}

/**
 * What it costs, by store.
 * @param {HTMLElement} place
 * @param {Cost | null | undefined} cost undefined: not told yet
 */
export function showCost(place, cost) {
  if (!cost) {
    const words = cost === null ? "Nothing that this gateway keeps things in has a price." : "Not told yet.";
    place.replaceChildren(element("p", { class: "hint" }, words));
    return;
  }
  const lines = [
    ["So far", `${money(cost.dollars)} in ${age(cost.seconds)}`],
    ["A million videos", money(cost.per_million_videos)],
    ...cost.stores.map(({ store, dollars }) => [store, money(dollars)]),
  ];
  place.replaceChildren(
    element("dl", {},
      element("dt", {}, "A month at this pace"), element("dd", { class: "large" }, money(cost.per_month)),
      ...lines.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)])),
    element("p", { class: "hint" },
      `Prices: ${cost.prices}. Machines, Redis, pushes and what lies in the stores are not in it.`),
  );
}

/**
 * A time as `relative` says it, with the exact one behind it.
 * @param {number} ms
 * @param {number} now
 */
export function timeOf(ms, now) {
  return element("time", { datetime: new Date(ms).toISOString(), title: moment(ms) }, relative(ms, now));
}

/**
 * @param {string} name
 * @param {number} cells
 */
function row(name, cells) {
  const empty = Array.from({ length: cells }, () => element("td"));
  return element("tr", {}, element("th", { scope: "row" }, name), ...empty);
}

/**
 * @param {HTMLTableRowElement} made
 * @param {readonly string[]} texts
 */
function fill(made, texts) {
  texts.forEach((text, index) => say(made.cells[index + 1], text));
}

/**
 * @param {Process} process
 * @param {readonly string[]} names
 */
function rate({ history }, names) {
  const { count: grown, ms } = history.increase(names, NOW_MS);
  return ms ? grown * 1000 / ms : 0;
}

/**
 * @param {Record<string, number | null> | undefined} answers
 * @param {string} store
 */
function answered(answers, store) {
  if (answers === undefined || !(store in answers)) return NONE;
  const ms = answers[store];
  return ms === null ? "no answer" : span(ms / 1000);
}

/** @param {number | null | undefined} ms */
function backendGrade(ms) {
  return ms === null ? "bad" : ms === undefined ? null : grade(ms / 1000, LIMITS.backend);
}

/**
 * @param {number} value
 * @param {{fair: number, bad: number}} limits
 */
function grade(value, { fair, bad }) {
  return value >= bad ? "bad" : value >= fair ? "fair" : null;
}

/**
 * @param {HTMLElement} cell
 * @param {boolean} isHere
 */
function here(cell, isHere) {
  const shown = cell.querySelector(".here");
  if (isHere && shown === null) cell.append(element("span", { class: "here" }, "tells you this"));
  if (!isHere) shown?.remove();
}

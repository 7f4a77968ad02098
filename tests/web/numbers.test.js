/** The console's numbers: what follows from what processes tell. Run by test_console.py. */

import assert from "node:assert/strict";
import test from "node:test";

import { Fleet } from "../../gateway/web/console/fleet.js";
import * as format from "../../gateway/web/console/format.js";
import { FRESH_MS, History, HOUR_MS, SILENT_MS, absolute, grid, quantile } from "../../gateway/web/console/numbers.js";
import { Parser, backoff } from "../../gateway/web/console/stream.js";
import { backends, summarize } from "../../gateway/web/console/summary.js";
import { headline, verdicts } from "../../gateway/web/console/verdicts.js";

const T = 1_796_000_000_000;
const STEP = 10_000;

/**
 * @param {string} name
 * @param {Partial<import("../../gateway/web/console/numbers.js").Description>} [given]
 */
function description(name, given = {}) {
  const series = ["packets", "sockets"];
  return { process: name, started_at: T - HOUR_MS * 9, step_ms: STEP, series, hour: [], ...given };
}

/**
 * A history of one counter and one gauge.
 * @param {[number, number, number][]} samples ms after T, packets, sockets
 * @param {Partial<import("../../gateway/web/console/numbers.js").Description>} [given]
 */
function history(samples, given) {
  const made = new History(description("a", given));
  for (const [after, ...values] of samples) made.append(T + after, values);
  return made;
}

/**
 * A fleet that heard these samples of packets and sockets, by process, at the times that they have.
 * @param {Record<string, [number, number, number][]>} told
 */
function fleet(told) {
  const made = new Fleet();
  for (const name of Object.keys(told)) made.describe(description(name), 0);
  const times = [...new Set(Object.values(told).flatMap(samples => samples.map(([after]) => after)))];
  for (const after of times.sort((one, other) => one - other)) {
    const samples = Object.entries(told).flatMap(([process, rows]) => rows
      .filter(([at]) => at === after).map(([at, ...values]) => ({ process, at: T + at, values })));
    made.take({ at: T + after, here: "a", samples }, after);
  }
  return made;
}

// --- One process

test("rows of an hour are told as differences, their times too", () => {
  const rows = [[T, 5, 7], [T + STEP, 6, 4], [T + 2 * STEP, 6, 6]];
  assert.deepEqual(absolute([[T, 5, 7], [STEP, 1, -3], [STEP, 0, 2]]), rows);
  assert.deepEqual(absolute([]), []);
});

test("an hour and the samples after it are one history", () => {
  const made = history([[30_000, 50, 4]], { hour: [[T, 10, 1], [STEP, 10, 1]] });
  assert.deepEqual([...made.totals(["packets"], [T, T + STEP, T + 20_000, T + 30_000])], [10, 20, 35, 50]);
  assert.equal(made.level("sockets"), 4);
});

test("between two samples a counter goes in a straight line, outside of all of them it is level", () => {
  const made = history([[0, 100, 0], [4_000, 120, 0]]);
  const times = [T - 5_000, T, T + 1_000, T + 4_000, T + 9_000];
  assert.deepEqual([...made.totals(["packets"], times)], [100, 100, 105, 120, 120]);
});

test("a sample that is not newer changes nothing", () => {
  const made = history([[0, 1, 1], [1_000, 2, 2], [1_000, 9, 9], [500, 9, 9]]);
  assert.equal(made.level("packets"), 2);
  assert.equal(made.last, T + 1_000);
});

test("a counter that falls began anew: nothing is lost, and nothing is negative", () => {
  const made = history([[0, 100, 0], [1_000, 110, 0], [2_000, 3, 0], [3_000, 5, 0], [4_000, 1, 0]]);
  const totals = made.totals(["packets"], [T, T + 1_000, T + 2_000, T + 3_000, T + 4_000]);
  assert.deepEqual([...totals], [100, 110, 113, 115, 116]);
});

test("a gauge that falls just falls", () => {
  const made = history([[0, 0, 50], [1_000, 0, 20]]);
  assert.deepEqual([...made.levels("sockets", [T, T + 1_000])], [50, 20]);
});

test("a gauge is not known before the first sample, nor long after the last", () => {
  const made = history([[0, 0, 50]]);
  assert.deepEqual([...made.levels("sockets", [T - 1, T, T + SILENT_MS, T + SILENT_MS + 1])], [NaN, 50, 50, NaN]);
});

test("what a process counted before its first sample counts if it has just started", () => {
  const young = history([[4_000, 12, 0]], { started_at: T });
  assert.deepEqual(young.increase(["packets"], 60_000), { count: 12, ms: 4_000 });
  assert.equal(young.knownFrom, -Infinity);
  assert.deepEqual([...young.levels("sockets", [T, T + 4_000])], [NaN, 0], "of gauges nothing is known before it");
  const old = history([[4_000, 12, 0]], { started_at: T - HOUR_MS });
  assert.deepEqual(old.increase(["packets"], 60_000), { count: 0, ms: 0 });
  assert.equal(old.knownFrom, T + 4_000);
});

test("what a process does not tell counts as nothing", () => {
  const made = history([[0, 1, 1], [1_000, 2, 1]]);
  assert.equal(made.level("unheard_of"), 0);
  assert.deepEqual(made.increase(["unheard_of", "packets"], 1_000), { count: 1, ms: 1_000 });
  assert.deepEqual(new History(description("a")).increase(["packets"], 1_000), { count: 0, ms: 0 });
});

test("a process that tells every second for two hours is kept within bounds, and its counts stay exact", () => {
  const made = history(Array.from({ length: 7_201 }, (_, second) => [second * 1_000, second * 3, second]));
  const oldest = made.first;
  assert.ok(oldest >= T + 7_200_000 - HOUR_MS - 3 * STEP && oldest <= T + 7_200_000 - HOUR_MS, String(oldest - T));
  assert.equal(made.increase(["packets"], HOUR_MS).count, 3 * 3_600);
  assert.equal(made.increase(["packets"], FRESH_MS / 2).count, 3 * 150);
  assert.ok(made.size <= 360 + FRESH_MS / 1_000 + 5, String(made.size));
});

test("the buckets of a histogram are read off the names, and sorted by their bounds", () => {
  const series = ["x_seconds_le_0.5", "x_seconds_le_inf", "x_seconds_le_10.0", "x_seconds_sum_ms", "xx_seconds_le_1"];
  const made = new History(description("a", { series }));
  assert.deepEqual(made.buckets("x_seconds").map(({ bound }) => bound), [0.5, 10, Infinity]);
  assert.deepEqual(made.buckets("y_seconds"), []);
});

// --- Quantiles

test("a quantile lies within its bucket, in proportion", () => {
  const bounds = [1, 2, 4, Infinity];
  assert.equal(quantile(bounds, [0, 10, 10, 10], 0.5), 1.5);
  assert.equal(quantile(bounds, [10, 10, 10, 10], 0.9), 0.9);
  assert.equal(quantile(bounds, [5, 5, 10, 10], 0.75), 3);
});

test("beyond the last finite bound a quantile is that bound", () => {
  assert.equal(quantile([1, 2, Infinity], [0, 0, 10], 0.99), 2);
});

test("there is no quantile of nothing", () => {
  assert.equal(quantile([1, Infinity], [0, 0], 0.5), null);
  assert.equal(quantile([], [], 0.5), null);
});

test("quantiles are of all processes together, also where they have other buckets", () => {
  const made = new Fleet();
  made.describe(description("a", { series: ["t_le_1.0", "t_le_2.0", "t_le_inf"], started_at: T }), 0);
  made.describe(description("b", { series: ["t_le_1.0", "t_le_inf"], started_at: T }), 0);
  made.take({ at: T + 1_000, here: "a", samples: [
    { process: "a", at: T + 1_000, values: [0, 10, 10] }, { process: "b", at: T + 1_000, values: [10, 10] },
  ] }, 0);
  assert.deepEqual(made.quantiles("t", [0.25, 0.75], 60_000), [0.5, 1.5]);
  assert.deepEqual(made.quantiles("other", [0.5], 60_000), [null]);
});

// --- All processes

test("gauges are added up or compared, rates are added up", () => {
  const made = fleet({ a: [[0, 0, 5], [2_000, 20, 6]], b: [[0, 100, 1], [2_000, 110, 2]] });
  assert.equal(made.sum("sockets"), 8);
  assert.equal(made.max("sockets"), 6);
  assert.equal(made.rate(["packets"], 5_000), 15);
  assert.equal(made.increase(["packets"], 5_000), 30);
  assert.equal(made.increase(["packets"], 1_000), 15);
});

test("an empty fleet has numbers, too", () => {
  const made = new Fleet();
  assert.deepEqual([made.sum("sockets"), made.max("sockets"), made.rate(["packets"], 5_000)], [0, 0, 0]);
  assert.equal(headline(verdicts(summarize(made)), false).grade, "unknown");
});

test("samples of a process that has not said who it is are passed over", () => {
  const made = new Fleet();
  made.take({ at: T, here: "a", samples: [{ process: "a", at: T, values: [1, 1] }] }, 0);
  assert.deepEqual(made.processes, []);
});

test("a process that fell silent is not there any more, but its past counts", () => {
  const made = fleet({
    a: [[0, 0, 1], [1_000, 10, 1], [20_000, 10, 1]],
    b: [[0, 0, 7], [1_000, 50, 7]],
  });
  assert.deepEqual(made.processes.map(({ name }) => name), ["a"]);
  assert.equal(made.sum("sockets"), 1);
  assert.equal(made.increase(["packets"], 60_000), 60);
  assert.deepEqual(made.sumLine("sockets", [T + 1_000, T + 20_000]), [8, 1]);
});

test("a process that is heard again is there again", () => {
  const made = fleet({ a: [[0, 0, 1], [20_000, 0, 1], [21_000, 0, 1]], b: [[0, 0, 7], [21_000, 3, 8]] });
  assert.deepEqual(made.processes.map(({ name }) => name), ["a", "b"]);
  assert.equal(made.sum("sockets"), 9);
});

test("a process that says again who it is replaces what was known of it", () => {
  const made = fleet({ a: [[0, 0, 1], [1_000, 10, 1]] });
  made.describe(description("a", { hour: [[T - STEP, 0, 0], [STEP, 4, 1], [1_000, 6, 1]] }), 0);
  assert.equal(made.increase(["packets"], HOUR_MS), 10);
});

test("lines are empty where nothing was heard", () => {
  const made = fleet({ a: [[10_000, 0, 2], [20_000, 10, 3]] });
  const times = grid(T + 40_000, 40_000, 10_000);
  assert.deepEqual(made.sumLine("sockets", times), [null, 2, 3, 3, null]);
  assert.deepEqual(made.increaseLine(["packets"], times, 10_000), [null, null, 10, 0, null]);
  assert.deepEqual(made.quantileLines("t", [0.5], times, 10_000), [[null, null, null, null, null]]);
});

test("processes are in the order of their names, numbers counted as such", () => {
  const made = fleet({ "m/serve-10.a": [[0, 0, 0]], "m/serve-2.b": [[0, 0, 0]], "m/worker.c": [[0, 0, 0]] });
  assert.deepEqual(made.processes.map(({ role }) => role), ["serve-2", "serve-10", "worker"]);
  assert.deepEqual(made.processes.map(({ serves }) => serves), [true, true, false]);
  assert.deepEqual(made.processes.map(({ works }) => works), [false, false, true]);
});

test("a grid ends at a whole step, so that lines do not tremble", () => {
  assert.deepEqual(grid(25_999, 20_000, 10_000), [0, 10_000, 20_000]);
});

// --- Verdicts

/**
 * What is said about a fleet of one process with these values.
 * @param {Record<string, number>} values
 * @param {Record<string, number | null>} [answers] of backends
 * @param {string} [name]
 */
function judged(values, answers = { documents: 1 }, name = "m/serve.a") {
  const made = new Fleet();
  made.describe(description(name, { series: Object.keys(values), started_at: T }), 0);
  const sample = { process: name, at: T + 5_000, values: Object.values(values) };
  made.take({ at: T + 5_000, here: name, samples: [sample] }, 0);
  made.facts = { at: T, backends: { [name]: answers }, cost: null };
  return Object.fromEntries(verdicts(summarize(made)).map(verdict => [verdict.key, verdict]));
}

test("where all is well every verdict is good", () => {
  const found = judged({ sockets: 3, calls_2xx: 10 });
  assert.deepEqual(Object.values(found).map(({ grade }) => grade), Array(6).fill("good"));
  assert.deepEqual(headline(Object.values(found), false), { grade: "good", words: "Users are served." });
  assert.equal(found.served.words, "3 sockets");
});

test("each fault shows in its verdict, with its number", () => {
  const bad = [
    judged({ cpu_us: 29_400_000 }).served,
    judged({ calls_2xx: 90, calls_5xx: 10 }).failing,
    judged({}, { documents: null }).backends,
    judged({ due_age_ms: 90_000 }).wakeups,
    judged({ breaker_open_apns: 1 }).wakeups,
    judged({ bus_down: 1 }).bus,
    judged({ "packet_seconds_le_2.5": 0, "packet_seconds_le_5.0": 10, packet_seconds_le_inf: 10 }).late,
    judged({ sockets: 0 }, {}, "m/worker.a").served,
    judged({ sockets: 0 }, {}, "m/serve-0.a").wakeups,
  ];
  assert.deepEqual(bad.map(({ grade }) => grade), Array(bad.length).fill("bad"));
  assert.deepEqual(bad.map(({ words }) => words), [
    "a process uses 98 % of a core", "10 % of calls", "no answer: documents", "due for 90 s", "APNs left alone",
    "1 of 1 cut off", "packets take 5 s", "no process serves", "no worker is heard",
  ]);
});

test("what is not bad yet is fair", () => {
  const fair = [
    judged({ cpu_us: 25_500_000 }).served,
    judged({ calls_2xx: 995, calls_5xx: 5 }).failing,
    judged({}, { documents: 400, objects: 3 }).backends,
    judged({ due_age_ms: 20_000 }).wakeups,
    judged({ pushes_fcm_rejected: 2 }).wakeups,
    judged({ worker_failures: 1 }).wakeups,
    judged({ tokens_kept: 7 }).wakeups,
    judged({ bus_gaps: 3 }).bus,
    judged({ packets_late: 2 }).late,
  ];
  assert.deepEqual(fair.map(({ grade }) => grade), Array(fair.length).fill("fair"));
});

test("the headline names the worst, and says so when nothing is known of now", () => {
  const found = Object.values(judged({ bus_down: 1, due_age_ms: 70_000, packets_late: 5 }));
  assert.deepEqual(headline(found, false), { grade: "bad", words: "Something is wrong: wakeups, bus" });
  assert.equal(headline(found, true).grade, "unknown");
});

test("a backend is as slow as its slowest answer, and silent if any process had none", () => {
  const found = backends({ a: { documents: 1, objects: null }, b: { documents: 7, objects: 2 } });
  assert.deepEqual([...found], [["documents", 7], ["objects", null]]);
});

// --- The stream

test("events are read wherever the text is cut", () => {
  const text = ": watching\n\nevent: samples\ndata: {\"at\":1}\n\nevent: facts\ndata: {}\n\n";
  for (let size = 1; size < text.length; size += 1) {
    const parser = new Parser();
    const found = [];
    for (let at = 0; at < text.length; at += size) found.push(...parser.feed(text.slice(at, at + size)));
    assert.deepEqual(found, [{ name: "samples", data: "{\"at\":1}" }, { name: "facts", data: "{}" }]);
  }
});

test("whoever is refused waits longer each time, up to half a minute", () => {
  assert.deepEqual([0, 1, 2, 9].map(failures => backoff(failures, 1)), [1_000, 2_000, 4_000, 30_000]);
  assert.equal(backoff(5, 0), 0);
});

// --- Words

test("numbers are as long as they have to be", () => {
  assert.deepEqual([0, 0.004, 0.05, 1.234, 12.3, 1234, 2_000_000].map(format.amount),
    ["0", "0", "0.05", "1.2", "12", "1,234", "2M"]);
  assert.deepEqual([null, undefined, NaN].map(format.count), ["–", "–", "–"]);
  assert.deepEqual([0, 0.0042, 0.9999, 1.26, 99, 300, 7200, 345_600].map(format.span),
    ["0 s", "4.2 ms", "1 s", "1.3 s", "99 s", "5 min", "2 h", "4 d"]);
  assert.deepEqual([0.9, 61, 3_600, 90_061].map(format.age), ["0 s", "1 min 1 s", "1 h", "1 d 1 h"]);
  assert.deepEqual([0, 999, 96_000_000].map(format.bytes), ["0 B", "999 B", "96 MB"]);
  assert.deepEqual([0, 0.000123, 0.0345, 21.4, 12_345].map(format.money),
    ["$0", "$0.00012", "$0.035", "$21.40", "$12,345"]);
  assert.deepEqual([format.relative(T - 4_000, T), format.relative(T + 61_000, T), format.relative(T, T)],
    ["4 s ago", "in 1 min 1 s", "now"]);
});

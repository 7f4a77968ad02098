/** Are users served? Six answers, and the thresholds that they come from: all of them are here. */

import { amount, count, percent, span } from "./format.js";

/** @typedef {import("./summary.js").Summary} Summary */
/** @typedef {"good" | "fair" | "bad" | "unknown"} Grade */

/** @typedef {{grade: Grade, words: string}} Answer */
/** @typedef {{key: string, label: string, rule: string, grade: Grade, words: string}} Verdict */

/** From here on it is `fair`, or `bad`. Times in seconds, shares of 1. Alert rules watch for about what is bad here. */
export const LIMITS = {
  /** p99 from change to packet */
  packet: { fair: 0.25, bad: 1 },
  /** calls and handshakes answered with 5xx */
  failed: { fair: 0.001, bad: 0.01 },
  /** a backend's answer */
  backend: { fair: 0.25, bad: 1 },
  /** who has been due the longest */
  due: { fair: 15, bad: 60 },
  /** CPU of the busiest process, in cores */
  busy: { fair: 0.8, bad: 0.95 },
};

const { packet, failed, backend, due, busy } = LIMITS;

/** @type {{key: string, label: string, rule: string, judge: (now: Summary) => Answer}[]} */
const QUESTIONS = [
  {
    key: "served", label: "Serving", judge: served,
    rule: `Bad: no process that serves is heard, or one uses ${percent(busy.bad)} of a core for half a minute. `
      + `Fair: ${percent(busy.fair)}.`,
  },
  {
    key: "late", label: "Latency", judge: onTime,
    rule: `Of the packets of the last minute, 99 in 100 reached sockets within a time that is fair from `
      + `${span(packet.fair)}, bad from ${span(packet.bad)}. Fair, too: in the last five minutes packets were missed, `
      + "and came late.",
  },
  {
    key: "failing", label: "Faults", judge: failing,
    rule: `Calls and handshakes of the last five minutes answered with 5xx. Fair from ${percent(failed.fair)}, `
      + `bad from ${percent(failed.bad)}.`,
  },
  {
    key: "backends", label: "Backends", judge: answering,
    rule: `The slowest answer of each store to any process. Fair from ${span(backend.fair)}, bad from `
      + `${span(backend.bad)}, or without an answer within 2 s.`,
  },
  {
    key: "wakeups", label: "Wakeups", judge: waking,
    rule: `Who has been due the longest. Fair from ${span(due.fair)}, bad from ${span(due.bad)}, or where a provider `
      + "is left alone since it fails, or no worker is heard. Fair, too: in the last five minutes a push was rejected, "
      + "a worker failed, or tokens said to be dead were kept since they were too many.",
  },
  {
    key: "bus", label: "Bus", judge: reaching,
    rule: "Bad: a process does not reach the others. Fair: in the last five minutes clients were loaded anew, since "
      + "messages may have been lost.",
  },
];

const HEADLINES = {
  good: "Users are served.",
  fair: "Users are served, but look at this:",
  bad: "Something is wrong:",
  unknown: "Waiting for the first numbers.",
  stale: "Nothing is known of now.",
};
const RANKS = /** @type {const} */ (["unknown", "good", "fair", "bad"]);

/**
 * The six answers, in the order in which they are shown.
 * @param {Summary} now
 * @returns {Verdict[]}
 */
export function verdicts(now) {
  return QUESTIONS.map(({ judge, ...question }) => ({ ...question, ...judge(now) }));
}

/**
 * The worst of them in a sentence.
 * @param {readonly Verdict[]} found
 * @param {boolean} isStale whether they are of a time that is over
 * @returns {Answer}
 */
export function headline(found, isStale) {
  if (isStale) return { grade: "unknown", words: HEADLINES.stale };
  const grade = RANKS[Math.max(...found.map(verdict => RANKS.indexOf(verdict.grade)))];
  const named = found.filter(verdict => verdict.grade === grade).map(verdict => verdict.label.toLowerCase());
  const isNamed = grade === "fair" || grade === "bad";
  return { grade, words: isNamed ? `${HEADLINES[grade]} ${named.join(", ")}` : HEADLINES[grade] };
}

/** @param {Summary} now @returns {Answer} */
function served({ processes, serving, busy: used, sockets }) {
  if (!processes) return { grade: "unknown", words: "no process heard yet" };
  if (!serving) return { grade: "bad", words: "no process serves" };
  const grade = graded(used, busy);
  if (grade !== "good") return { grade, words: `a process uses ${percent(used)} of a core` };
  return { grade, words: `${count(sockets)} ${sockets === 1 ? "socket" : "sockets"}` };
}

/** @param {Summary} now @returns {Answer} */
function onTime({ processes, late, packetTimes: { p99 } }) {
  if (!processes) return { grade: "unknown", words: "no process heard yet" };
  const grade = graded(p99 ?? 0, packet);
  if (grade === "bad") return { grade, words: `packets take ${span(p99)}` };
  if (late >= 1) return { grade: "fair", words: `${count(late)} came late` };
  return p99 === null ? { grade, words: "no packet lately" } : { grade, words: `within ${span(p99)}` };
}

/** @param {Summary} now @returns {Answer} */
function failing({ processes, asked, failed: faults }) {
  if (!processes) return { grade: "unknown", words: "no process heard yet" };
  if (faults < 1) return { grade: "good", words: "no call fails" };
  return { grade: graded(faults / asked, failed), words: `${percent(faults / asked)} of calls` };
}

/** @param {Summary} now @returns {Answer} */
function answering({ backends }) {
  if (!backends?.size) return { grade: "unknown", words: "not asked yet" };
  const silent = [...backends].filter(([, ms]) => ms === null).map(([name]) => name);
  if (silent.length) return { grade: "bad", words: `no answer: ${silent.join(", ")}` };
  const slowest = Math.max(...[...backends.values()].map(ms => ms ?? 0)) / 1000;
  return { grade: graded(slowest, backend), words: `answer in ${span(slowest)}` };
}

/** @param {Summary} now @returns {Answer} */
function waking({ processes, working, leftAlone, due: oldest, rejected, workerFailures, tokensKept }) {
  if (!processes) return { grade: "unknown", words: "no process heard yet" };
  if (!working) return { grade: "bad", words: "no worker is heard" };
  if (leftAlone.length) return { grade: "bad", words: `${leftAlone.join(" and ")} left alone` };
  const grade = graded(oldest, due);
  if (grade !== "good") return { grade, words: `due for ${span(oldest)}` };
  if (rejected >= 1) return { grade: "fair", words: `${count(rejected)} rejected` };
  if (workerFailures >= 1) return { grade: "fair", words: `${amount(workerFailures)} failed` };
  if (tokensKept >= 1) return { grade: "fair", words: `${count(tokensKept)} dead tokens kept` };
  return { grade, words: "nobody waits" };
}

/** @param {Summary} now @returns {Answer} */
function reaching({ processes, busDown, busGaps }) {
  if (!processes) return { grade: "unknown", words: "no process heard yet" };
  if (busDown) return { grade: "bad", words: `${busDown} of ${processes} cut off` };
  if (busGaps >= 1) return { grade: "fair", words: `${count(busGaps)} loaded anew` };
  return { grade: "good", words: processes === 1 ? "one process" : `${processes} processes` };
}

/**
 * @param {number} value
 * @param {{fair: number, bad: number}} limits
 * @returns {Grade}
 */
function graded(value, { fair, bad }) {
  return value >= bad ? "bad" : value >= fair ? "fair" : "good";
}

/** The numbers of now, out of what all processes told: what tiles and verdicts are made from. */

/** @typedef {import("./fleet.js").Fleet} Fleet */
/** @typedef {ReturnType<typeof summarize>} Summary */

export const STATUSES = /** @type {const} */ (["uploaded", "notified", "downloaded", "viewed", "expired"]);
export const PLATFORMS = /** @type {const} */ (["apns", "fcm"]);
export const OUTCOMES = /** @type {const} */ (["accepted", "token_dead", "retry", "rejected"]);
export const PROVIDERS = /** @type {const} */ ({ apns: "APNs", fcm: "FCM" });

export const CALLS = ["calls_2xx", "calls_3xx", "calls_4xx", "calls_5xx"];
const HANDSHAKES = ["handshakes_1xx", "handshakes_4xx", "handshakes_5xx"];
const NOW_MS = 5_000;
const WHILE_MS = 30_000;
export const MINUTE_MS = 60_000;
const LATELY_MS = 300_000;

/**
 * The series of pushes with one of `outcomes`, at all providers.
 * @param {...string} outcomes
 */
export function pushes(...outcomes) {
  return PLATFORMS.flatMap(platform => outcomes.map(outcome => `pushes_${platform}_${outcome}`));
}

/**
 * Rates are of the last 5 seconds, quantiles and counts of videos and pushes of the last minute, faults of the last 5
 * minutes. Times are in seconds, CPU in cores; `busy` is that of the busiest process in the last half minute, with
 * what is not known of a young one as idle. What is not known is null.
 * @param {Fleet} fleet
 */
export function summarize(fleet) {
  const [p50, p90, p99] = fleet.quantiles("packet_seconds", [0.5, 0.9, 0.99], MINUTE_MS);
  const cores = fleet.processes.map(({ history }) => history.increase(["cpu_us"], NOW_MS))
    .map(({ count, ms }) => (ms ? count / 1000 / ms : 0));
  return {
    processes: fleet.processes.length,
    serving: fleet.processes.filter(process => process.serves).length,
    working: fleet.processes.filter(process => process.works).length,
    sockets: fleet.sum("sockets"),
    polls: fleet.sum("held_polls"),
    callRate: fleet.rate(CALLS, NOW_MS),
    packetRate: fleet.rate(["packets"], NOW_MS),
    packetTimes: { p50, p90, p99 },
    callP99: fleet.quantiles("call_seconds", [0.99], MINUTE_MS)[0],
    asked: fleet.increase([...CALLS, ...HANDSHAKES], LATELY_MS),
    failed: fleet.increase(["calls_5xx", "handshakes_5xx"], LATELY_MS),
    late: fleet.increase(["packets_late"], LATELY_MS),
    uploaded: fleet.increase(["videos_uploaded"], MINUTE_MS),
    viewed: fleet.increase(["videos_viewed"], MINUTE_MS),
    accepted: fleet.increase(pushes("accepted"), MINUTE_MS),
    rejected: fleet.increase(pushes("rejected"), LATELY_MS),
    tokensKept: fleet.increase(["tokens_kept"], LATELY_MS),
    workerFailures: fleet.increase(["worker_failures"], LATELY_MS),
    wakeupP90: fleet.quantiles("wakeup_seconds", [0.9], MINUTE_MS)[0],
    leftAlone: PLATFORMS.filter(platform => fleet.max(`breaker_open_${platform}`)).map(platform => PROVIDERS[platform]),
    due: fleet.max("due_age_ms") / 1000,
    busDown: fleet.processes.filter(({ history }) => history.level("bus_down")).length,
    busGaps: fleet.increase(["bus_gaps"], LATELY_MS),
    cores: cores.reduce((sum, used) => sum + used, 0),
    busiest: Math.max(0, ...cores),
    busy: Math.max(0, ...fleet.processes.map(({ history }) => history.increase(["cpu_us"], WHILE_MS).count))
      / 1000 / WHILE_MS,
    memory: fleet.sum("memory_bytes"),
    backends: fleet.facts && backends(fleet.facts.backends),
    cost: fleet.facts && fleet.facts.cost,
  };
}

/**
 * The slowest answer of each backend to any process, in ms; null where any of them had none.
 * @param {Record<string, Record<string, number | null>>} answers by process
 */
export function backends(answers) {
  /** @type {Map<string, number | null>} */
  const slowest = new Map();
  for (const [name, ms] of Object.values(answers).flatMap(Object.entries)) {
    const before = slowest.get(name);
    slowest.set(name, ms === null || before === null ? null : Math.max(before ?? 0, ms));
  }
  return slowest;
}

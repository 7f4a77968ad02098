/** Numbers, spans and times as the page shows them. Everything is text; a number that is not known is a dash. */

export const NONE = "–";

const COUNT = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const MINUTE = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const MOMENT = new Intl.DateTimeFormat("en-GB", {
  year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
  fractionalSecondDigits: 3,
});
const SPANS = /** @type {const} */ ([[86_400, "d"], [3_600, "h"], [60, "min"]]);
const BYTES = ["B", "KB", "MB", "GB", "TB"];

/** @typedef {number | null | undefined} Maybe */

/** @param {Maybe} value a whole number */
export function count(value) {
  return absent(value) ? NONE : value < 100_000 ? COUNT.format(value) : SHORT.format(value);
}

/** @param {Maybe} value of any size, to about two digits that mean something */
export function amount(value) {
  if (absent(value)) return NONE;
  if (value >= 99.5) return count(value);
  return value === 0 ? "0" : String(Number(value.toFixed(value < 0.995 ? 2 : value < 9.95 ? 1 : 0)));
}

/** @param {Maybe} seconds a span that may be very short: `3 ms`, `1.2 s`, `4 min`, `2.5 h` */
export function span(seconds) {
  if (absent(seconds)) return NONE;
  if (seconds === 0) return "0 s";
  if (seconds < 0.9995) return `${amount(seconds * 1000)} ms`;
  if (seconds < 99.5) return `${amount(seconds)} s`;
  const [unit, name] = SPANS.find(([size]) => seconds >= 2 * size) ?? SPANS[2];
  return `${amount(seconds / unit)} ${name}`;
}

/** @param {Maybe} seconds a span that is lived: `42 s`, `3 min 5 s`, `2 d 4 h` */
export function age(seconds) {
  if (absent(seconds)) return NONE;
  const whole = Math.max(0, Math.floor(seconds));
  const place = SPANS.findIndex(([size]) => whole >= size);
  if (place < 0) return `${whole} s`;
  const [size, name] = SPANS[place];
  const [smaller, smallerName] = SPANS[place + 1] ?? [1, "s"];
  const rest = Math.floor((whole % size) / smaller);
  return `${Math.floor(whole / size)} ${name}${rest ? ` ${rest} ${smallerName}` : ""}`;
}

/** @param {Maybe} value */
export function bytes(value) {
  if (absent(value)) return NONE;
  const power = Math.min(Math.max(0, Math.floor(Math.log10(Math.max(value, 1)) / 3)), BYTES.length - 1);
  return `${amount(value / 1000 ** power)} ${BYTES[power]}`;
}

/** @param {Maybe} dollars with as many digits as it takes to show something */
export function money(dollars) {
  if (absent(dollars)) return NONE;
  if (dollars === 0) return "$0";
  if (dollars >= 1000) return `$${COUNT.format(dollars)}`;
  const digits = dollars >= 1 ? 2 : Math.min(8, 1 - Math.floor(Math.log10(dollars)));
  return `$${dollars.toFixed(digits)}`;
}

/** @param {Maybe} share 0 to 1 */
export function percent(share) {
  return absent(share) ? NONE : `${amount(share * 100)} %`;
}

/** @param {number} ms since the epoch: the time of day */
export function clock(ms) { return CLOCK.format(ms); }

/** @param {number} ms since the epoch: the time of day, without seconds */
export function minute(ms) { return MINUTE.format(ms); }

/** @param {number} ms since the epoch: to the millisecond, with its date */
export function moment(ms) { return MOMENT.format(ms); }

/**
 * How far a time lies from `now`: `4 s ago`, `in 2 min 3 s`, `now`.
 * @param {number} ms
 * @param {number} now
 */
export function relative(ms, now) {
  const away = (ms - now) / 1000;
  if (Math.abs(away) < 1) return "now";
  return away < 0 ? `${age(-away)} ago` : `in ${age(away)}`;
}

/**
 * @param {Maybe} value
 * @returns {value is null | undefined}
 */
function absent(value) {
  return value === null || value === undefined || Number.isNaN(value);
}

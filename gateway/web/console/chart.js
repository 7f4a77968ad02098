/** One chart: a title, a legend that says the values, and lines that pointer and arrow keys walk along. */

import uPlot from "../vendor/uPlot.js";
import { element, keyed, mark, say, shape } from "./dom.js";
import { age, clock, minute, span } from "./format.js";

/** @typedef {import("./lines.js").Chart} Definition */
/** @typedef {import("./lines.js").Series} Series */

const HEIGHT = 150;
const COLOURS = 6;
/** Lines of one colour differ in these. */
const DASHES = [[], [6, 4], [2, 3]];
/** Seconds that read well on an axis whose values range over powers of ten. */
const ROUND = [0.0001, 0.001, 0.01, 0.1, 1, 10, 60, 600, 3_600, 86_400, 864_000, 8_640_000];
/** More of them lie too close together. */
const MOST_ROUND = 5;
/** @type {Record<string, (index: number, last: number) => number>} */
const STEPS = {
  ArrowLeft: index => index - 1,
  ArrowRight: index => index + 1,
  PageUp: index => index - 10,
  PageDown: index => index + 10,
  Home: () => 0,
  End: (_, last) => last,
};

/** A chart in the page. With arrow keys, Page up, Page down, Home and End it says the values of other times. */
export class ChartView {
  #definition;
  /** @type {uPlot | null} */
  #plot = null;
  /** @type {Series[]} */
  #series = [];
  /** @type {number[]} */
  #times = [];
  #legend = element("ul", { class: "legend" });
  #when = element("span", { class: "when" });
  #nothing = element("p", { class: "nothing", hidden: "" });
  #area = element("div", { class: "plot", role: "slider", tabindex: "0", "aria-orientation": "horizontal" });
  /** What to put into the page. */
  figure;

  /** @param {Definition} definition */
  constructor(definition) {
    this.#definition = definition;
    const { key, title, unit, nothing } = definition;
    const heading = element("h3", {}, title, unit ? element("span", { class: "unit" }, ` ${unit}`) : null);
    this.figure = element("figure", { class: "chart", id: `chart-${key}` },
      element("figcaption", {}, heading, this.#when), this.#legend, this.#area);
    say(this.#nothing, nothing);
    mark(this.#area, "aria-label", `${title}, over time`);
    this.#area.append(this.#nothing);
    this.#area.addEventListener("keydown", event => this.#walk(event));
    this.#area.addEventListener("blur", () => this.#plot?.setCursor({ left: -10, top: -10 }, true));
    new ResizeObserver(() => {
      if (this.#area.clientWidth) this.#plot?.setSize({ width: this.#area.clientWidth, height: HEIGHT });
    }).observe(this.#area);
  }

  /**
   * Show these lines.
   * @param {readonly Series[]} series
   * @param {number[]} times of their values
   */
  show(series, times) {
    const sameLines = series.map(({ key }) => key).join("\n") === this.#series.map(({ key }) => key).join("\n");
    this.#series = [...series];
    this.#times = times;
    this.#nothing.hidden = series.some(({ values }) => values.some(value => value !== null));
    const entries = series.map((line, index) => ({ ...line, index }));
    keyed(this.#legend, entries, ({ key, index }) => `${index} ${key}`, entry);
    const data = /** @type {uPlot.AlignedData} */ ([times, ...series.map(({ values }) => values)]);
    if (this.#plot !== null && sameLines) this.#plot.setData(data);
    else this.#build(data);
    this.#tell(this.#plot?.cursor.idx ?? null);
  }

  /** Draw it again: the colours are others. */
  redraw() { this.#plot?.redraw(false, true); }

  /** @param {uPlot.AlignedData} data */
  #build(data) {
    this.#plot?.destroy();
    const { wide, format } = this.#definition;
    const rule = { stroke: () => colour("--line"), width: 1 };
    const axis = {
      stroke: () => colour("--quiet"), font: "11px system-ui, sans-serif", grid: rule, ticks: { show: false },
    };
    this.#plot = new uPlot({
      width: this.#area.clientWidth || 380,
      height: HEIGHT,
      ms: 1,
      padding: [8, 18, 0, 0],
      legend: { show: false },
      cursor: {
        y: false, drag: { x: false, y: false, setScale: false }, sync: { key: "console" }, points: { size: 6 },
      },
      scales: { y: wide ? { distr: 3, range: round } : { range: fromNothing } },
      axes: [
        {
          ...axis, size: 26, space: 48,
          values: (_, splits, __, ___, step) => splits.map(step < 60_000 ? clock : minute),
        },
        {
          ...axis, size: 54, space: 30, ...(wide ? { splits: roundSplits, filter: every } : {}),
          values: (_, splits) => splits.map(wide ? roundTime : format),
        },
      ],
      series: [{}, ...this.#series.map((_, index) => ({
        stroke: () => colour(`--line-${index % COLOURS + 1}`),
        dash: DASHES[Math.floor(index / COLOURS) % DASHES.length],
        width: 1.5,
        points: { show: false },
      }))],
      hooks: { setCursor: [plot => this.#tell(plot.cursor.idx ?? null)] },
    }, data, this.#area);
    mark(this.#plot.root, "aria-hidden", "true");
  }

  /**
   * The values at a place, or the last ones, into the legend.
   * @param {number | null} index
   */
  #tell(index) {
    const last = this.#times.length - 1;
    const place = index === null || index > last ? last : index;
    const { format, unit, nothing } = this.#definition;
    const words = this.#series.map(({ label, values }) => `${label} ${format(values[place])}`);
    const time = clock(this.#times[place]);
    say(this.#when, place === last ? "" : time);
    [...this.#legend.children].forEach((item, line) => {
      const value = item.querySelector("b");
      if (value !== null) say(value, format(this.#series[line].values[place]));
    });
    mark(this.#area, "aria-valuemin", "0");
    mark(this.#area, "aria-valuemax", String(last));
    mark(this.#area, "aria-valuenow", String(place));
    mark(this.#area, "aria-valuetext", this.#nothing.hidden ? `${time}: ${words.join(", ")} ${unit}`.trim() : nothing);
  }

  /** @param {KeyboardEvent} event */
  #walk(event) {
    const step = STEPS[event.key];
    const plot = this.#plot;
    if (step === undefined || plot === null) return;
    event.preventDefault();
    const last = this.#times.length - 1;
    const place = Math.min(last, Math.max(0, step(plot.cursor.idx ?? last, last)));
    plot.setCursor({ left: plot.valToPos(this.#times[place], "x"), top: HEIGHT / 3 }, true);
  }
}

/** @param {Series & {index: number}} line */
function entry({ label, index }) {
  const dash = DASHES[Math.floor(index / COLOURS) % DASHES.length].join(" ") || null;
  const stroke = shape("line", { x1: "0", x2: "18", y1: "4", y2: "4", "stroke-dasharray": dash });
  stroke.style.stroke = `var(--line-${index % COLOURS + 1})`;
  const sample = shape("svg", { viewBox: "0 0 18 8", "aria-hidden": "true" }, stroke);
  return element("li", {}, sample, element("span", { class: "name", title: label }, label), element("b", {}));
}

/**
 * What a custom property of the page stands for now.
 * @param {string} name
 */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** @type {uPlot.Range.Function} */
function fromNothing(_, __, most) {
  return most ? [0, uPlot.rangeNum(0, most, 0.1, true)[1] ?? most] : [0, 1];
}

/** @type {uPlot.Range.Function} */
function round(_, least, most) {
  if (least === null || !(least > 0)) return [0.001, 1];
  return [ROUND.findLast(time => time <= least) ?? least, ROUND.find(time => time >= most && time > least) ?? most];
}

/** @param {number} seconds */
function roundTime(seconds) {
  return seconds < 60 ? span(seconds) : age(seconds);
}

/** @type {uPlot.Axis.Filter} */
function every(_, splits) { return splits; }

/**
 * @param {uPlot} _
 * @param {number} __
 * @param {number} least
 * @param {number} most
 */
function roundSplits(_, __, least, most) {
  const found = ROUND.filter(time => time >= least && time <= most);
  return found.length > MOST_ROUND ? found.filter((_, place) => place % 2 === 0) : found;
}

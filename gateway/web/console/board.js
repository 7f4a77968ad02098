/** The board: everything that is shown of all processes, drawn once for what came within a second. */

import { ChartView } from "./chart.js";
import { byId, element, keyed, mark, say } from "./dom.js";
import { CHARTS } from "./lines.js";
import { HOUR_MS, grid } from "./numbers.js";
import { summarize } from "./summary.js";
import { showCost, showProcesses, showPushes, showVideos } from "./tables.js";
import { showTiles } from "./tiles.js";
import { headline, verdicts } from "./verdicts.js";

/** @typedef {import("./fleet.js").Fleet} Fleet */
/** @typedef {import("./fleet.js").Facts} Facts */
/** @typedef {import("./verdicts.js").Verdict} Verdict */

const REACHES = {
  hour: { spanMs: HOUR_MS, stepMs: 10_000 },
  minutes: { spanMs: 300_000, stepMs: 1_000 },
};
/** Processes tell a moment after the second: the end of the lines is where all have. */
const LAG_MS = 2_000;
const SIGNS = { good: "✓", fair: "!", bad: "×", unknown: "?" };

export class Board {
  #fleet;
  #charts = CHARTS.map(definition => ({ definition, view: new ChartView(definition) }));
  /** @type {keyof typeof REACHES} */
  #reach = "hour";
  #drawnTo = 0;
  /** @type {Facts | null | undefined} those that are shown */
  #facts = undefined;
  #isDue = false;
  #isStale = false;

  /** @param {Fleet} fleet what is shown; it may change at any time */
  constructor(fleet) {
    this.#fleet = fleet;
    byId("charts", HTMLElement).replaceChildren(...this.#charts.map(({ view }) => view.figure));
  }

  /**
   * Show the lines of the last hour, or of the last minutes.
   * @param {string} reach
   */
  reach(reach) {
    this.#reach = reach === "minutes" ? "minutes" : "hour";
    this.refresh();
  }

  /** Draw the lines anew, and all else: there is more to show than one second's samples. */
  refresh() {
    this.#drawnTo = 0;
    this.draw();
  }

  /**
   * Whether what is shown is of a time that is over.
   * @param {boolean} isStale
   */
  stale(isStale) {
    this.#isStale = isStale;
    this.draw();
  }

  /** The colours have changed. */
  recolour() {
    for (const { view } of this.#charts) view.redraw();
  }

  /** Draw at the next frame, however often this is called until then. */
  draw() {
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      if (this.#fleet.at) this.#drawNow();
    });
  }

  #drawNow() {
    const fleet = this.#fleet;
    const now = summarize(fleet);
    const found = verdicts(now);
    showVerdicts(found, headline(found, this.#isStale));
    if (byId("overview", HTMLElement).hidden) return;
    showTiles(byId("tiles", HTMLElement), fleet, now);
    showProcesses(byId("processes", HTMLElement), fleet, performance.now());
    if (fleet.facts !== this.#facts) showCost(byId("cost", HTMLElement), fleet.facts?.cost);
    this.#facts = fleet.facts;
    const { spanMs, stepMs } = REACHES[this.#reach];
    const times = grid(fleet.at - LAG_MS, spanMs, stepMs);
    if (times[times.length - 1] === this.#drawnTo) return;
    this.#drawnTo = times[times.length - 1];
    for (const { definition, view } of this.#charts) view.show(definition.lines(fleet, { times, stepMs }), times);
    showVideos(byId("videos", HTMLElement), fleet);
    showPushes(byId("pushes", HTMLElement), byId("push-times", HTMLElement), fleet);
  }
}

/**
 * @param {readonly Verdict[]} found
 * @param {import("./verdicts.js").Answer} together
 */
function showVerdicts(found, { grade, words }) {
  const sentence = byId("headline", HTMLElement);
  say(sentence, words);
  mark(sentence, "data-grade", grade);
  keyed(byId("verdicts", HTMLElement), found, ({ key }) => key, makeVerdict, (made, verdict) => {
    const [button, sign, said] = made.querySelectorAll("button, .sign, .words");
    mark(button, "data-grade", verdict.grade);
    say(sign, SIGNS[verdict.grade]);
    say(said, verdict.words);
  });
}

/** @param {Verdict} verdict */
function makeVerdict({ key, label, rule }) {
  const tip = `rule-${key}`;
  const made = element("li", {},
    element("button", { type: "button", "aria-describedby": tip },
      element("span", { class: "sign", "aria-hidden": "true" }),
      element("strong", {}, label),
      element("span", { class: "words" })),
    element("p", { id: tip, class: "tip", role: "tooltip" }, rule));
  made.addEventListener("keydown", event => made.classList.toggle("dismissed", event.key === "Escape"));
  for (const again of ["focusin", "pointerenter"]) {
    made.addEventListener(again, () => made.classList.remove("dismissed"));
  }
  return made;
}

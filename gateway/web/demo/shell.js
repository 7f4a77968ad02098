/**
 * The demo's page: the table with two phones on it, Alice's and Bob's, or with one alone.
 *
 * `?room=`: whoever is in the same room can send to one another. `?as=`: one phone, of whoever has that name.
 *
 * @module
 */

import { find, make } from "./elements.js";
import { freshRoom, person, roomOf } from "./people.js";
import { Phone } from "./phone.js";
import { Story } from "./story.js";

const TICK_MS = 1_000;

const query = new URLSearchParams(location.search);
const room = roomOf(query);
const alone = query.get("as")?.toLowerCase() ?? null;
const table = find(document, "main", HTMLElement);
const phones = lay();

tick();
setInterval(tick, TICK_MS);
describeRoom();

/** Lay on the table what the address asks for. */
function lay() {
  try {
    return alone === null ? pair() : [single(alone)];
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    table.append(make("p", "", `Nobody can be called that: ${error.message}.`));
    return [];
  }
}

/** Two phones that send to each other. */
function pair() {
  const story = new Story({ tries: true });
  const [alice, bob] = [phoneOf("alice", "bob", story), phoneOf("bob", "alice", story)];
  table.append(alice.element, story.element, bob.element);
  return [alice, bob];
}

/**
 * One phone, whose user chooses the recipient.
 *
 * @param {string} name
 */
function single(name) {
  const story = new Story({ tries: false });
  const phone = phoneOf(name, name === "alice" ? "bob" : "alice", story, true);
  table.classList.add("single");
  table.append(phone.element, story.element);
  return phone;
}

/**
 * @param {string} name
 * @param {string} recipient
 * @param {Story} story
 */
function phoneOf(name, recipient, story, chooses = false) {
  return new Phone(person(name, room), { name: recipient, chooses }, (event, text) => story.tell(name, event, text));
}

function tick() {
  const now = new Date();
  for (const phone of phones) phone.tick(now);
}

function describeRoom() {
  find(document, "#room", HTMLElement).textContent = room;
  find(document, "#fresh", HTMLAnchorElement).href = address({ room: freshRoom() });
  const links = ["alice", "bob"].map((name) => link(person(name, room).title, { as: name, room }));
  const alones = ["One phone alone, for a real phone's screen:", ...links];
  const others = alone === null ? alones : [link("Both phones, Alice's and Bob's", { room })];
  find(document, "#alone", HTMLElement).append(...others);
}

/**
 * @param {string} text
 * @param {{ [name: string]: string }} query
 */
function link(text, query) {
  const link = make("a", "", text);
  link.href = address(query);
  return link;
}

/** @param {{ [name: string]: string }} query */
function address(query) {
  return `/?${new URLSearchParams(query)}`;
}

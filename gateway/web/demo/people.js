/** Who is in the demo: names in a room, and the clients that they are to the gateway. @module */

const NAME = /^[a-z0-9_-]{1,20}$/;
const LETTERS = "abcdefghijklmnopqrstuvwxyz23456789";
const ROOM = "demo.room";

/**
 * Somebody in a room. `clientId`: who that is to the gateway. `title`: how the page calls them.
 *
 * @typedef {Readonly<{ name: string, room: string, clientId: string, title: string }>} Person
 */

/**
 * The person of that name. Throws RangeError for what is no name, or no room's.
 *
 * @param {string} name 1 to 20 characters of a-z 0-9 _ -
 * @param {string} room likewise
 * @returns {Person}
 */
export function person(name, room) {
  if (!NAME.test(name) || !NAME.test(room)) throw new RangeError("a name has 1 to 20 characters of a-z, 0-9, _ and -");
  return Object.freeze({ name, room, clientId: `demo.${name}.${room}`, title: titled(name) });
}

/**
 * How the page calls a client: by the name in its id, where it has one.
 *
 * @param {string} clientId
 */
export function titleOf(clientId) {
  return titled(clientId.match(/^demo\.([^.]+)\./)?.[1] ?? clientId);
}

/** @param {string} name */
function titled(name) {
  return name.charAt(0).toUpperCase() + name.slice(1);
}

/**
 * The room of this page: the one that its address names, else the one that this browser was in last, else a new one.
 *
 * @param {URLSearchParams} query
 */
export function roomOf(query) {
  const named = [query.get("room"), localStorage.getItem(ROOM)].find((room) => room !== null && NAME.test(room));
  const room = named ?? freshRoom();
  localStorage.setItem(ROOM, room);
  return room;
}

/** A room in which nobody is. */
export function freshRoom() {
  return Array.from(crypto.getRandomValues(new Uint32Array(6)), (number) => LETTERS[number % LETTERS.length]).join("");
}

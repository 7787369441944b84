// Copyright: Contributors to the edgesec.nanomq collection
// GNU General Public License v3.0+ (see LICENSE)
// Text of hosts is hostile: it goes into text nodes alone, and what would show nothing is spelt out.

const SEVERITIES = ["low", "medium", "high", "critical"];
const GRADES = ["F", "D", "C", "B", "A"];
const $ = (id) => document.getElementById(id);

// Controls, formats (bidi too), surrogates, private and unassigned ones, blanks but the space, and what is ignored.
const HIDDEN = /[\p{C}\p{Zl}\p{Zp}\p{DI}]|(?! )\p{Zs}/u;
const SPLIT = new RegExp(`(${HIDDEN.source})`, "gu");
const spelt = (character) => {
  const code = character.codePointAt(0);
  return code < 0x10000 ? "\\u" + code.toString(16).padStart(4, "0") : `\\u{${code.toString(16)}}`;
};
const plain = (text) =>
  text
    .split(SPLIT)
    .map((part, index) => (index % 2 ? spelt(part) : part))
    .join("");

// Append text with every character that shows nothing spelt out.
function spell(node, text) {
  if (!HIDDEN.test(text)) {
    node.append(text);
    return;
  }
  text.split(SPLIT).forEach((part, index) => {
    if (index % 2) {
      const mark = document.createElement("span");
      mark.className = "ctl";
      mark.textContent = spelt(part);
      node.append(mark);
    } else if (part) node.append(part);
  });
}

// An element: h("a.name", {href: "#"}, children), or without attributes. Strings become text, null nothing.
function h(kind, ...children) {
  const attributes = children[0]?.constructor === Object ? children.shift() : {};
  const [tag, ...classes] = kind.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const name in attributes) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), attributes[name]);
    else if (attributes[name] === true) node.setAttribute(name, "");
    else if (attributes[name] !== false && attributes[name] !== null) node.setAttribute(name, attributes[name]);
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    if (typeof child === "string") spell(node, child);
    else if (typeof child === "number") node.append(child.toLocaleString("en"));
    else node.append(child);
  }
  return node;
}
const bdi = (text) => h("bdi", text);
const count = (number, one, more = one + "s") => `${number.toLocaleString("en")} ${number === 1 ? one : more}`;
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const moment = (text) => {
  const date = new Date(text);
  if (isNaN(date)) return plain(text);
  return date.toLocaleString("en-GB", { timeZone: "UTC", dateStyle: "medium", timeStyle: "short" }) + " UTC";
};
// For addresses: encodeURIComponent refuses lone surrogates.
const encode = (text) =>
  text
    .split(/(\p{Cs})/u)
    .map((part, index) => (index % 2 ? "%u" + part.charCodeAt(0).toString(16) : encodeURIComponent(part)))
    .join("");

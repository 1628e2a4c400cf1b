// What pages cannot do without a program in the browser: they refresh themselves, but never under the user's
// hands; times are in the browser's time zone; tables are sorted; the theme is chosen.
"use strict";

// --- Live content

function isInUse(live) {
  const active = document.activeElement;
  if (active && live.contains(active) && active.matches("input, select, textarea")) return true;
  const selection = document.getSelection();
  return Boolean(selection && !selection.isCollapsed && live.contains(selection.anchorNode));
}

document.addEventListener("htmx:configRequest", (event) => {
  const live = event.target;
  if (live.id !== "live") return;
  event.detail.headers["X-Live-Version"] = live.dataset.version;
});

document.addEventListener("htmx:beforeRequest", (event) => {
  const live = event.target;
  if (live.id === "live" && (document.hidden || isInUse(live) || live.querySelector("form[data-changed]"))) {
    event.preventDefault();
  }
});

const kept = { open: new Map(), scrolled: new Map(), focused: null };

document.addEventListener("htmx:beforeSwap", (event) => {
  const live = event.target;
  if (live.id !== "live") return;
  // The user may have begun something since the request was sent.
  if (isInUse(live)) {
    event.detail.shouldSwap = false;
    return;
  }
  kept.open = new Map([...live.querySelectorAll("details[id]")].map((each) => [each.id, each.open]));
  kept.scrolled = new Map([...live.querySelectorAll("[id].scroll")].map((each) => [each.id, each.scrollLeft]));
  kept.focused = document.activeElement && live.contains(document.activeElement) ? document.activeElement.id : null;
});

document.addEventListener("htmx:afterSwap", () => {
  for (const [id, open] of kept.open) {
    const found = document.getElementById(id);
    if (found) found.open = open;
  }
  for (const [id, scrolled] of kept.scrolled) {
    const found = document.getElementById(id);
    if (found) found.scrollLeft = scrolled;
  }
  if (kept.focused) document.getElementById(kept.focused)?.focus();
  writeTimes();
});

function connection(text) {
  document.getElementById("connection").textContent = text;
}

document.addEventListener("htmx:sendError", () => connection("no connection"));
document.addEventListener("htmx:responseError", (event) => connection(`error ${event.detail.xhr.status}`));
document.addEventListener("htmx:afterOnLoad", () => connection(""));

document.addEventListener("input", (event) => {
  const form = event.target.closest("form");
  if (form) form.dataset.changed = "";
});

// --- Times

function ago(milliseconds) {
  const seconds = Math.max(0, (Date.now() - milliseconds) / 1000);
  if (seconds < 120) return `${Math.round(seconds)} s ago`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

function clock(moment) {
  const today = moment.toDateString() === new Date().toDateString();
  const time = moment.toLocaleTimeString(undefined, { hour12: false });
  return today ? time : `${moment.toLocaleDateString("sv")} ${time}`;
}

function writeTimes() {
  for (const each of document.querySelectorAll("time[datetime]")) {
    const moment = new Date(each.dateTime);
    if (!each.title) each.title = `${each.textContent} (${moment.toLocaleString()})`;
    const text = "ago" in each.dataset ? ago(moment.getTime()) : clock(moment);
    if (each.textContent !== text) each.textContent = text;
  }
}

setInterval(() => {
  if (!document.hidden && (document.getSelection()?.isCollapsed ?? true)) writeTimes();
}, 1000);

// --- Forms that are sent when something is chosen, and confirmations

document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-submit-on-change]");
  if (form) form.requestSubmit();
});

// --- Theme

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("streams-theme", root.dataset.theme);
});

writeTimes();

// Makes Hob's pages live. Every form and link works without this file; nothing is rendered here: forms marked
// data-live are posted by fetch and the page that comes back is merged into the one on screen, and answers grow
// by pieces of HTML that the server sends as events.
"use strict";

const $ = (selector, within = document) => within.querySelector(selector);
const field = () => $("#text");
const coarse = matchMedia("(pointer: coarse)");
const load = (address, options) => fetch(address, { headers: { Accept: "text/html" }, ...options });

// ---- Reading position: the page follows a growing answer only for a reader who is at its end.

const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 96;
const toEnd = () => scrollTo(0, document.documentElement.scrollHeight);

function keepingPlace(change) {
  const follow = atEnd();
  change();
  if (follow) toEnd();
}

// ---- Screen readers hear an answer in finished paragraphs, not in tokens.

function announce(text) {
  const line = document.createElement("p");
  line.textContent = text;
  $("#announcer").append(line);
  setTimeout(() => line.remove(), 30000);
}

const spoken = (element) =>
  element.matches(".code") ? "Code block." : element.textContent.replace(/\s+/g, " ").trim();

// ---- Answers under way.

const streams = new Map(); // article id -> EventSource

function follow(article) {
  if (!article.dataset.events || streams.has(article.id)) return;
  const id = article.id;
  const text = $(".text", article);
  const words = $(".status .words", article);
  let said = Math.max(0, text.children.length - 1); // what was complete before is read like any page
  let address = article.dataset.events;

  const open = () => {
    const source = new EventSource(address);
    streams.set(id, source);

    source.addEventListener("open", () => setWords(text.children.length ? "Writing" : "Thinking"));
    source.addEventListener("wait", (event) => setWords(JSON.parse(event.data).words || "Thinking"));
    source.addEventListener("tail", (event) => {
      const { keep, html } = JSON.parse(event.data);
      address = article.dataset.events.replace(/from=\d+/, `from=${event.lastEventId}`);
      keepingPlace(() => {
        while (text.children.length > keep) text.lastElementChild.remove();
        text.insertAdjacentHTML("beforeend", html);
        addCopyButtons(text);
        setWords("Writing");
      });
      for (; said < keep; said++) announce(spoken(text.children[said]));
    });
    source.addEventListener("done", (event) => {
      close(id);
      const fresh = parse(JSON.parse(event.data).html).body.firstElementChild;
      for (const element of [...$(".text", fresh).children].slice(said)) announce(spoken(element));
      const problem = $(".problem, .remark", fresh);
      if (problem) announce(problem.textContent);
      // What has not changed stays, so that a selection in it survives.
      if ($(".text", fresh).innerHTML === plain(text)) $(".text", fresh).replaceWith(text);
      keepingPlace(() => {
        article.replaceWith(fresh);
        addCopyButtons(fresh);
      });
      for (const button of document.querySelectorAll("#composer .stop")) button.remove();
    });
    source.addEventListener("gone", () => location.assign("/"));
    source.addEventListener("error", () => {
      setWords("The connection is lost. Reconnecting");
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      // The server answered with an error: it may be starting, or this browser was signed out.
      streams.delete(id);
      setTimeout(() => document.contains(article) && check().then(open), 2000);
    });
  };
  const setWords = (now) => {
    if (words && words.textContent !== now) words.textContent = now;
  };
  open();
}

async function check() {
  const response = await load(location.href).catch(() => null);
  if (response?.redirected) location.reload(); // to the sign-in page
  if (response?.status === 404) location.assign("/"); // deleted meanwhile
}

function close(id) {
  streams.get(id)?.close();
  streams.delete(id);
}

// ---- Forms: post, then merge the page that comes back.

const parse = (html) => new DOMParser().parseFromString(html, "text/html");

async function submit(form, submitter) {
  if (form.ariaBusy === "true") return;
  form.ariaBusy = "true";
  const data = new URLSearchParams(new FormData(form));
  if (submitter?.name) data.append(submitter.name, submitter.value);
  try {
    const response = await load(submitter?.getAttribute("formaction") ?? form.action, { method: "POST", body: data });
    const page = parse(await response.text());
    if (!$("#composer", page)) {
      if (!response.ok)
        return refuse($("h1", page)?.textContent ?? `Error ${response.status}.`, $("#view h1 + p", page)?.textContent);
      sessionStorage.draft = data.get("text") ?? ""; // until after the sign-in page
      return location.assign(response.url);
    }
    // A question that was taken leaves the field; to stop or to answer again leaves it alone.
    if (response.ok && form.id === "composer" && !submitter?.hasAttribute("formaction")) field().value = "";
    merge(page, response);
  } catch {
    refuse("Hob does not answer.", "Is it switched on, and are you on its network? Your text is still here.");
  } finally {
    form.ariaBusy = "false";
  }
}

function refuse(problem, hint = "") {
  const line = document.createElement("p");
  const strong = document.createElement("strong");
  strong.textContent = problem;
  line.append(strong, ` ${hint}`);
  $("#composer .alert").replaceChildren(line);
}

function merge(page, response) {
  const here = document.activeElement;
  const unchanged = new Map(); // articles on screen that are complete and stay as they are
  for (const article of document.querySelectorAll(".turn:not([data-state=running])"))
    unchanged.set(article.id + article.dataset.state + Boolean($("form", article)), article);
  for (const article of page.querySelectorAll(".turn")) {
    const old = unchanged.get(article.id + article.dataset.state + Boolean($("form", article)));
    if (old) article.replaceWith(old);
  }
  for (const id of [...streams.keys()]) close(id);
  // The answer to a press may come when the reader is elsewhere: an open menu stays, and so does the focus.
  const menu = $(".menu[open]");
  if (menu && response.url === location.href.split("#")[0]) $(".menu", page)?.replaceWith(menu);
  $("#view").replaceWith($("#view", page));
  $("#list").replaceChildren(...$("#list", page).childNodes);
  document.title = page.title;

  const [mine, theirs] = [$("#composer"), $("#composer", page)];
  for (const part of [".notice", ".alert", ".tools"]) $(part, mine).replaceWith($(part, theirs));
  mine.action = theirs.action;
  grow();
  if (response.ok && response.url !== location.href.split("#")[0]) history.pushState(null, "", response.url);
  shown = location.pathname;
  const remark = $(".turn:last-child :is(.remark, .problem)");
  if (response.ok && remark) announce(remark.textContent);
  enliven();
  if (response.ok) toEnd();
  if (here !== document.body && document.contains(here) && !mine.contains(here)) here.focus({ preventScroll: true });
  else if (!coarse.matches) field().focus({ preventScroll: true });
}

// A step back may lead to a page that was merged away: load it.
let shown = location.pathname;
addEventListener("popstate", () => location.pathname !== shown && location.reload());

document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-live]")) return;
  event.preventDefault();
  submit(event.target, event.submitter);
});

// ---- Copy buttons. The clipboard interface exists only over HTTPS and on localhost; a name on the LAN is neither.

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser did not allow copying");
}

function addCopyButtons(within) {
  for (const figure of within.querySelectorAll(".code")) {
    if ($(".copy", figure)) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button copy";
    button.textContent = "Copy";
    button.ariaLabel = "Copy the code";
    figure.append(button);
  }
}

function plain(text) {
  const clone = text.cloneNode(true);
  for (const button of clone.querySelectorAll(".copy")) button.remove();
  return clone.innerHTML;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  const done = await copy($("pre", button.parentElement).innerText.replace(/\n$/, "")).then(() => true, () => false);
  button.textContent = done ? "Copied" : "Not allowed";
  announce(button.textContent);
  button.focus();
  setTimeout(() => (button.textContent = "Copy"), 2000);
});

// ---- The composer grows with its text.

function grow() {
  if (!field() || CSS.supports("field-sizing", "content")) return;
  field().style.height = "auto";
  field().style.height = `${field().scrollHeight}px`;
}

document.addEventListener("input", (event) => event.target === field() && grow());

// ---- The drawer on narrow screens, and menus that close when the eye moves on.

function drawer(open) {
  document.body.classList.toggle("drawer", open);
  $(".topbar .open").ariaExpanded = String(open);
  if (open) $("#chats .close").focus();
  else if ($("#chats").contains(document.activeElement)) $(".topbar .open").focus();
}

document.addEventListener("click", (event) => {
  if (event.target.closest(".topbar .open, .close, .scrim")) {
    event.preventDefault();
    drawer(Boolean(event.target.closest(".open")));
  }
  for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});

// ---- Keys.

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, textarea, select");
  if (event.key === "Enter" && event.target === field() && !event.shiftKey && !event.isComposing && !coarse.matches) {
    event.preventDefault();
    if (!$("#composer .stop")) $("#composer").requestSubmit($("#composer .send"));
  } else if (event.key === "Escape") {
    const menu = $(".menu[open]");
    if (menu) {
      menu.open = false;
      $("summary", menu).focus();
    } else if (document.body.classList.contains("drawer")) drawer(false);
    else $("#composer .stop")?.click();
  } else if ((event.key === "/" && !typing) || (event.key === "k" && (event.ctrlKey || event.metaKey))) {
    event.preventDefault();
    if (getComputedStyle($(".topbar")).display !== "none") drawer(true);
    $("#q").focus();
    $("#q").select();
  }
});

// ---- What comes by itself. A machine that restarts may leave a request without an end, so each is given up after a while.

const look = (address) =>
  load(address, { signal: AbortSignal.timeout(20_000) })
    .then(async (response) => (response.ok ? parse(await response.text()) : null))
    .catch(() => null);

// While Hob is waking up, look every now and then whether it is awake.

async function awaken() {
  if (!$(".notice p")) return;
  await new Promise((done) => setTimeout(done, 3000));
  const page = await look("/");
  const fresh = page && $(".notice", page);
  if (fresh) $(".notice").replaceWith(fresh);
  awaken();
}

// ---- Work on models, updates: while some is under way, the page looks how far it is, and then what came of it.
// A device that goes down may not know any more what runs on it: that is no end.

async function watch() {
  if (!$("#work[data-watch]")) return;
  await new Promise((done) => setTimeout(done, 1000));
  const page = await look(location.pathname);
  const [old, fresh] = [$("#work"), page && $("#work", page)];
  if (fresh) {
    for (const job of fresh.querySelectorAll(".job")) {
      const before = [...old.querySelectorAll(".job")].find((other) => $("a", other).href === $("a", job).href);
      if (before && before.dataset.state !== job.dataset.state) announce($("p", job).textContent);
    }
    const label = old.contains(document.activeElement) && document.activeElement.ariaLabel;
    old.replaceWith(fresh);
    if (label) $(`[aria-label="${CSS.escape(label)}"]`, fresh)?.focus();
    // What has come of it; a menu that is open there is left alone.
    const [here, there] = [$("#installed"), $("#installed", page)];
    if (here && there && !$("details[open]", here) && !here.contains(document.activeElement)) here.replaceWith(there);
  } else if (page && !$("#installed[data-unknown]", page)) {
    // It is over. Without a view this is another page: a restart may have ended the session.
    if (!$("#view", page)) return location.reload();
    $("#view").replaceWith($("#view", page));
  }
  watch();
}

// ---- Start.

function enliven() {
  addCopyButtons(document);
  for (const article of document.querySelectorAll("[data-events]")) follow(article);
}

if (field() && sessionStorage.draft) {
  field().value = sessionStorage.draft;
  delete sessionStorage.draft;
}
enliven();
awaken();
watch();
grow();
if (field() && !coarse.matches) field().focus({ preventScroll: true });
if ($("#turns") && (!location.hash || $(".turn:last-child[data-state=running]"))) toEnd();

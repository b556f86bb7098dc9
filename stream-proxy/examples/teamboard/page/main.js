// Who is here, and which view is shown.

import { api, onSignedOut } from "./api.js";
import { el, toast } from "./dom.js";
import { boardView } from "./board.js";
import { homeView } from "./home.js";
import { signInView } from "./people.js";

const app = document.getElementById("app");
let config = null;
let view = null;
let turn = 0;

function show(root) {
  app.replaceChildren(root);
}

async function render() {
  const mine = ++turn;
  view?.close();
  view = null;
  const me = config.people.find((person) => person.id === config.me);
  if (!me) {
    document.title = "Teamboard";
    return show(signInView(config.people, boot));
  }
  const context = { me, people: config.people, events: config.events, navigate, go, leave, signOut };
  const board = location.pathname.match(/^\/boards\/(\d+)$/);
  try {
    const opened = board ? await boardView(Number(board[1]), context) : await homeView(context);
    if (mine !== turn) return opened.close();
    view = opened;
    show(view.root);
  } catch (error) {
    if (mine !== turn || error.status === 401) return;
    if (board && error.status === 404) return leave("There is no such board, or you are not a member.");
    show(el("main", { class: "plain" }, el("h1", {}, "Teamboard"), el("p", {}, `Something went wrong: ${error.message}`),
      el("button", { class: "button", onclick: render }, "Try again")));
  }
}

function go(path) {
  history.pushState(null, "", path);
  render();
}

function navigate(event) {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(event.currentTarget.getAttribute("href"));
}

function leave(message) {
  toast(message);
  go("/");
}

async function signOut() {
  await api("DELETE", "session").catch((error) => toast(error.message));
  history.pushState(null, "", "/");
  boot();
}

async function boot() {
  try {
    config = await api("GET", "config");
  } catch (error) {
    return show(el("main", { class: "plain" }, el("h1", {}, "Teamboard"), el("p", {}, `The server does not answer: ${error.message}`),
      el("button", { class: "button", onclick: boot }, "Try again")));
  }
  render();
}

onSignedOut(() => {
  if (config?.me) {
    config.me = null;
    render();
  }
});
addEventListener("popstate", render);
boot();

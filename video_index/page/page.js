// Asks the server for results and shows them; what is searched for stands in the address, so that "back" works.
const at = (id) => document.getElementById(id);
const form = at("form"), hits = at("hits"), said = at("said");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
let latest = 0; // number of the search that was begun last
let segments = -1; // of the index, as it was last
let stop = () => {}; // what plays

const ask = (address) =>
  fetch(address).then((answer) => answer.json(), () => ({ error: "No answer. Is search.py serve still running?" }));

function fill() {
  const fields = new URLSearchParams(location.search);
  for (const field of form.elements) {
    if (!field.name) continue;
    if (field.type === "checkbox") field.checked = fields.size === 0 || fields.has(field.name);
    else field.value = fields.get(field.name) ?? "";
  }
  at("like").hidden = !fields.has("like");
  at("like-name").textContent = fields.get("like_name") ?? "";
  return fields;
}

function go(like) {
  const fields = new URLSearchParams([...new FormData(form)].filter(([, value]) => value.trim()));
  const now = like ?? Object.fromEntries(new URLSearchParams(location.search));
  if (now.like) for (const name of ["like", "like_name"]) fields.set(name, now[name] ?? "");
  history.pushState(null, "", "?" + fields);
  search();
}

async function folders() {
  const about = await ask("about");
  segments = about.segments ?? segments;
  const select = at("folder"), chosen = new URLSearchParams(location.search).get("folder") ?? "";
  select.replaceChildren(select.options[0], ...(about.folders ?? []).map((name) => new Option(name)));
  select.value = chosen;
  if (!hits.children.length && !location.search) said.textContent = about.error ?? `${segments} segments`;
}

async function search() {
  const number = ++latest, fields = fill();
  stop();
  if (!fields.has("q") && !fields.has("like")) {
    hits.replaceChildren();
    said.textContent = segments < 0 ? "" : `${segments} segments`;
    return;
  }
  hits.setAttribute("aria-busy", "true");
  const answer = await ask("search?" + fields);
  if (number !== latest) return;
  hits.removeAttribute("aria-busy");
  const found = answer.hits ?? [];
  hits.replaceChildren(...found.map(card));
  const of = [`of ${answer.segments} segments, in ${answer.seconds} s`, ...(answer.notes ?? [])].join(". ");
  said.textContent = answer.error ?? `${found.length || "no"} ${found.length === 1 ? "result" : "results"} ${of}`;
  if (answer.segments !== undefined && answer.segments !== segments) folders();
}

function card(hit) {
  const item = at("hit").content.cloneNode(true).firstElementChild;
  const find = (name) => item.querySelector(name);
  const play = find(".play"), picture = find("img"), title = find("a"), name = `${hit.name} ${hit.when}`.trim();
  if (hit.plays) title.href = address(hit); // else it is no link
  title.textContent = hit.name;
  find(".facts").textContent = hit.facts;
  find(".note").textContent = hit.note;
  picture.addEventListener("error", () => {
    find(".note").textContent = "No picture: its file is not there now, or does not decode.";
    play.disabled = true;
    picture.remove();
  });
  picture.src = `thumbnail/${hit.id}`;
  if (hit.kind === "picture") {
    find(".sign").remove();
    play.addEventListener("click", () => title.click());
  } else {
    play.addEventListener("click", () => show(item, hit, true));
    play.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse" && !calm.matches) show(item, hit, false);
    });
    find(".shot").addEventListener("pointerleave", () => item.querySelector("video[controls]") || stop());
  }
  play.setAttribute("aria-label", `${hit.kind === "picture" ? "Show" : "Play"} ${name}`);
  find(".like").setAttribute("aria-label", `More like this: ${name}`);
  find(".like").addEventListener("click", () => {
    form.elements.q.value = "";
    go({ like: hit.id, like_name: name });
    form.elements.q.focus();
  });
  return item;
}

const address = (hit) => `file/${hit.id}#t=${hit.start ?? 0}${hit.end == null ? "" : "," + hit.end}`;

function show(item, hit, byHand) {
  stop();
  const shot = item.querySelector(".shot"), film = hit.plays ? video(item, hit, byHand) : frames(item, hit);
  shot.append(film);
  stop = () => {
    const focused = shot.contains(document.activeElement);
    const film = shot.querySelector("video, .frames");
    film.remove();
    film.removeAttribute("src"); // or it would go on loading
    film.load?.();
    if (focused) item.querySelector(".play").focus();
    stop = () => {};
  };
  if (byHand) film.focus();
}

function video(item, hit, byHand) {
  const film = document.createElement("video");
  Object.assign(film, { muted: true, playsInline: true, controls: byHand, autoplay: true, tabIndex: 0 });
  film.setAttribute("aria-label", hit.name);
  film.addEventListener("pause", () => {
    if (byHand || !film.isConnected || film.currentTime < Math.min(hit.end ?? Infinity, film.duration) - 0.3) return;
    film.currentTime = hit.start ?? 0; // the moment once more
    film.play();
  });
  film.addEventListener("error", () => {
    hit.plays = false;
    item.querySelector(".note").textContent = "This browser does not play the file: you see frames of it.";
    film.replaceWith(frames(item, hit));
  });
  film.src = address(hit);
  return film;
}

function frames(item, hit) {
  const film = document.createElement("div"), one = item.querySelector("img"), shot = item.querySelector(".shot");
  const scale = Math.min(shot.clientWidth / one.naturalWidth, shot.clientHeight / one.naturalHeight);
  const [width, height] = [one.naturalWidth, one.naturalHeight].map((pixels) => `${pixels * scale}px`);
  Object.assign(film.style, { backgroundImage: `url(frames/${hit.id})`, width, height });
  film.className = "frames";
  return film;
}

form.addEventListener("submit", (event) => (event.preventDefault(), go()));
form.addEventListener("change", (event) => event.target.closest("details") && location.search && go());
at("unlike").addEventListener("click", () => (go({}), form.elements.q.focus()));
addEventListener("keydown", (event) => event.key === "Escape" && stop());
addEventListener("popstate", () => search());
folders();
search();

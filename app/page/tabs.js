// Tabs and servers: a page hears of changes instead of asking twice a second, says when the server is gone and what was
// lost with it, and a browser finds the streams again that it started.
() => {
  const KEY = "vamba-live"; // this tab's stream
  const LAST = "vamba-last"; // what was known of it, to say what was lost
  const MINE = "vamba-streams"; // the keys of this browser's streams: no other site, and no other visitor, can read them
  const SILENCE_MS = 12_000; // the server says something every 3 s
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  const stored = (store, name, otherwise) => {
    try {
      return JSON.parse(store.getItem(name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  };
  const post = (what, key, body) => fetch(`live/${what}`, { method: "POST", headers: { "x-vamba-key": key }, body });

  // One look at the stream for any number of changes, twice a second at most.
  let looking = false;
  const look = async () => {
    if (looking) return;
    looking = true;
    await sleep(document.hidden ? 0 : 150);
    looking = false;
    document.querySelector("#tick")?.click();
  };

  // What is said across the page
  const say = (words, kind) => {
    let box = document.querySelector("#notice");
    if (!box) {
      box = document.createElement("div");
      box.id = "notice";
      box.setAttribute("role", "alert");
      document.querySelector("main")?.prepend(box);
    }
    box.className = kind;
    box.textContent = words;
    if (kind !== "lost") return;
    const close = document.createElement("button");
    close.textContent = "Close";
    close.onclick = () => box.remove();
    box.append(close);
  };
  const hush = (kind) => document.querySelector(`#notice.${kind}`)?.remove();
  const questions = (count) => (count === 1 ? " and its question" : count ? ` and its ${count} questions` : "");
  const lost = (last) =>
    say(
      `The server no longer has ${last.name} (seen until ${last.seen})${questions(last.questions)}: it was started anew, ` +
        "or nobody looked for an hour. Press Start to watch again.",
      "lost",
    );

  // Hearing of changes
  let current = null;
  const heard = (key, told) => {
    const last = stored(sessionStorage, LAST, null);
    if (!told.known) {
      current = null;
      sessionStorage.removeItem(LAST);
      forget(key);
      if (last?.key === key) lost(last);
      document.querySelector(last?.key === key ? "#tick" : "#open")?.click();
      return;
    }
    if (current?.key === key) current.waits = told.waits;
    if (told.idle) {
      sessionStorage.removeItem(LAST);
      forget(key);
    } else {
      hush("lost");
      sessionStorage.setItem(LAST, JSON.stringify({ key, name: told.name, seen: told.seen, questions: told.questions }));
      remember(key);
    }
    look();
  };
  const follow = async (mine) => {
    const answer = await fetch("live/changes", { method: "POST", headers: { "x-vamba-key": mine.key }, signal: mine.abort.signal });
    if (!answer.ok) throw new Error(answer.statusText);
    hush("gone");
    mine.failures = 0;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; current === mine; ) {
      const { value, done } = await Promise.race([reader.read(), sleep(SILENCE_MS).then(() => ({ done: true }))]);
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line) heard(mine.key, JSON.parse(line));
    }
  };
  const listen = async () => {
    const key = sessionStorage.getItem(KEY);
    if (!key || document.hidden || current?.key === key) return;
    current?.abort.abort();
    const mine = (current = { key, abort: new AbortController(), failures: 0 });
    while (current === mine) {
      await follow(mine).catch(() => {});
      if (current !== mine) return;
      mine.failures += 1;
      if (mine.failures > 1)
        say("The server does not answer. Trying again; what was watched is kept there, unless it was ended.", "gone");
      await sleep(Math.min(500 * mine.failures, 4000));
    }
  };
  document.addEventListener("mouseout", (event) => event.target.closest?.("#film") && !event.relatedTarget?.closest?.("#film") && look());
  window.vambaListen = listen;
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return listen();
    if (current?.waits || window.vambaNotifies?.()) return; // in line for a place, which is given on to who does not listen
    current?.abort.abort(); // browsers allow a server six connections: those are for tabs that are looked at
    current = null;
  });
  setInterval(() => document.hidden && look(), 60_000); // a sign of life

  // My streams
  const mine = () => stored(localStorage, MINE, []).filter((one) => typeof one?.key === "string");
  const keep = (list) => localStorage.setItem(MINE, JSON.stringify(list.slice(0, 12)));
  const remember = (key) => mine().some((one) => one.key === key) || keep([{ key, when: Date.now() }, ...mine()]);
  const forget = (key) => keep(mine().filter((one) => one.key !== key));
  const button = (words, does, name) => {
    const made = document.createElement("button");
    made.textContent = words;
    made.setAttribute("aria-label", `${words} ${name}`);
    made.onclick = does;
    return made;
  };
  const open = (key) => {
    sessionStorage.setItem(KEY, key);
    document.querySelector("#open")?.click();
    document.querySelector("#mine details").open = false;
  };
  const entry = (key, told) => {
    const item = document.createElement("li");
    const words = document.createElement("span");
    words.textContent = `${told.name} · ${told.state} · seen until ${told.seen} · questions: ${told.questions}`;
    const here = key === sessionStorage.getItem(KEY);
    const gone = async () => (await post("close", key), forget(key), list());
    item.append(words, ...(here ? ["this page"] : [button("Open", () => open(key), told.name), button("Delete", gone, told.name)]));
    return item;
  };
  const list = async () => {
    const all = mine();
    const answer = all.length ? await post("streams", "", JSON.stringify(all.map((one) => one.key))).catch(() => null) : null;
    const told = answer?.ok ? await answer.json() : [];
    const there = all.map((one, index) => [one.key, told[index]]).filter(([, view]) => view && !view.idle);
    if (answer?.ok) keep(all.filter((one) => there.some(([key]) => key === one.key)));
    const box = document.querySelector("#mine");
    if (!box) return;
    box.querySelector("ul").replaceChildren(...there.map(([key, view]) => entry(key, view)));
    const elsewhere = there.filter(([key]) => key !== sessionStorage.getItem(KEY)).length;
    box.querySelector("summary").textContent = elsewhere ? `My streams (${elsewhere} elsewhere)` : "My streams";
    box.querySelector("p").hidden = there.length > 0;
  };
  document.addEventListener("toggle", (event) => event.target.closest?.("#mine") && event.target.open && list(), true);
  list();
  listen();
}

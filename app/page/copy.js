// Copies words, or a link to a moment or a question, and goes to the question that the address names.
() => {
  const voice = Object.assign(document.createElement("div"), { className: "unseen" });
  voice.setAttribute("role", "status");
  document.querySelector("main").append(voice);

  // Pages that are not on https have no clipboard; there the old way still works.
  const oldWay = (text) => {
    const box = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
    document.body.append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    return done;
  };
  const copied = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return oldWay(text);
    }
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy], [data-link]");
    if (!button) return;
    const { copy, link } = button.dataset;
    const done = await copied(copy ?? `${location.origin}${location.pathname}${location.search}#${link}`);
    const words = (button.dataset.words ??= button.textContent);
    button.textContent = voice.textContent = done ? "Copied" : "Not copied";
    button.focus();
    setTimeout(() => ((button.textContent = words), (voice.textContent = "")), 1500);
  });

  // The conversation is drawn after the page.
  const shown = (tries = 40) => {
    const question = /^#q=(\d{1,9})$/.exec(location.hash)?.[1];
    const answer = question && document.querySelector(`#chat #q-${question}`);
    if (answer) {
      answer.scrollIntoView({ block: "center" });
      answer.classList.add("named");
      setTimeout(() => answer.classList.remove("named"), 3000);
    } else if (question && tries) setTimeout(shown, 250, tries - 1);
  };
  window.addEventListener("hashchange", () => shown());
  shown();
}

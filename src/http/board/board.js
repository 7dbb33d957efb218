// The board works without this. It searches while somebody types, copies renewal links, and takes / to the search.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const form = byId("search");
  const results = byId("results");
  const count = byId("count");
  const said = byId("said");
  if (!form) return;

  let waiting;
  let asked;

  const search = async () => {
    const query = new URLSearchParams([...new FormData(form)].filter(([key, value]) => value !== "" && !(key === "sort" && value === "ends")));
    const address = query.size > 0 ? `?${query}` : "";
    asked?.abort();
    asked = new AbortController();
    results.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(`board/results${address}`, { signal: asked.signal });
      if (answer.status === 401) return location.reload();
      if (!answer.ok) throw new Error(answer.statusText);
      // Made by the worker, which escapes every text in it.
      results.innerHTML = await answer.text();
      count.textContent = results.firstElementChild.dataset.count;
      history.replaceState(null, "", `board${address}`);
      results.removeAttribute("aria-busy");
    } catch (error) {
      if (error.name === "AbortError") return;
      count.textContent = "The search got no answer. Press Enter to try again.";
      results.removeAttribute("aria-busy");
    }
  };

  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(search, event.target.id === "q" ? 200 : 0);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(waiting);
    search();
  });

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      byId("q").focus();
      byId("q").select();
    }
  });

  // Where the browser lets nobody write to the clipboard, as on plain http, the link is shown to be copied by hand.
  const show = (button, url) => {
    const field = document.createElement("input");
    field.readOnly = true;
    field.value = url;
    field.setAttribute("aria-label", "Renewal link");
    button.replaceWith(field);
    field.focus();
    field.select();
  };

  const copy = async (sent) => {
    const button = sent.querySelector("button");
    const organization = sent.elements.namedItem("org").value;
    button.disabled = true;
    try {
      const answer = await fetch(sent.action, {
        method: "POST",
        headers: { accept: "application/json" },
        body: new URLSearchParams(new FormData(sent)),
      });
      if (answer.status === 401) return location.reload();
      if (!answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        throw new Error(page.querySelector("main p")?.textContent ?? answer.statusText);
      }
      const link = await answer.json();
      try {
        await navigator.clipboard.writeText(link.url);
        button.firstChild.textContent = "Copied";
        setTimeout(() => { button.firstChild.textContent = "Copy renewal link"; }, 4000);
      } catch {
        show(button, link.url);
      }
      said.textContent = `The renewal link for ${organization} can be used until ${link.expires_at}, or until a consent was given.`;
    } catch (error) {
      said.textContent = `No link for ${organization}: ${error.message}`;
    } finally {
      button.disabled = false;
    }
  };

  document.addEventListener("submit", (event) => {
    if (event.target.matches("form.link")) {
      event.preventDefault();
      copy(event.target);
    }
  });
})();

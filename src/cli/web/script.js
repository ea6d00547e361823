// Counts again while the page is visible, moves to the search with "/", and hides fields that do not apply.
// Without this script everything works, and the reader counts again by reloading.
"use strict";

const counts = document.getElementById("counts");
const note = document.getElementById("note");

function content() {
  return counts.firstElementChild;
}

function say(text, bad) {
  note.textContent = text;
  note.classList.toggle("bad", bad);
  counts.classList.toggle("stale", bad);
}

// Replaces the counts. Keeps the focus on the link that has it.
function replace(html) {
  const focused = counts.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  counts.innerHTML = html;
  for (const link of counts.querySelectorAll("a")) {
    if (focused !== null && link.getAttribute("href") === focused) {
      link.focus({ preventScroll: true });
      break;
    }
  }
}

async function countAgain() {
  if (document.hidden) {
    document.addEventListener("visibilitychange", countAgain, { once: true });
    return;
  }
  try {
    const reply = await fetch("counts?seen=" + encodeURIComponent(content().dataset.seen), { cache: "no-store" });
    if (reply.status === 200 && content().dataset.seen === "closed") {
      // A service has opened the store: the head of the page shows that too.
      location.reload();
      return;
    }
    if (reply.status === 200) {
      replace(await reply.text());
    }
    if (!reply.ok) {
      say(await reply.text(), true);
    } else if (content().dataset.seen !== "closed") {
      say("Counts follow the service.", false);
    }
  } catch {
    say("The command oncekey web has ended: these are the last numbers.", true);
  }
  setTimeout(countAgain, Number(content().dataset.pause));
}

if (counts) {
  if (content().dataset.seen !== "closed") {
    say("Counts follow the service.", false);
  }
  setTimeout(countAgain, Number(content().dataset.pause));
}

const search = document.querySelector("[data-search]");
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (search && event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    search.focus();
    search.select();
  }
});

// Shows the fields of the chosen kind of outcome only.
function choose() {
  const how = document.querySelector("input[name=how]:checked");
  for (const part of document.querySelectorAll("[data-for]")) {
    part.hidden = how !== null && !part.dataset.for.split(" ").includes(how.value);
  }
}
document.querySelectorAll("input[name=how]").forEach((input) => input.addEventListener("change", choose));
choose();

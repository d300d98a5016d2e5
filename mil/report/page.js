"use strict";
// Tables of more than 50 rows are shown 50 rows a time.
const ROWS = 50;
const paged = (table) => {
  const body = table.tBodies[0];
  const count = body.rows.length;
  if (count <= ROWS) return () => {};
  const bar = document.createElement("p");
  bar.className = "pages";
  const words = document.createElement("span");
  words.setAttribute("role", "status");
  const button = (text, move) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", () => show(first + move));
    return made;
  };
  const earlier = button("Previous", -ROWS);
  const later = button("Next", ROWS);
  let first = 0;
  const show = (row) => {
    first = row;
    const end = Math.min(first + ROWS, count);
    [...body.rows].forEach((one, place) => { one.hidden = place < first || place >= end; });
    words.textContent = `Rows ${first + 1} to ${end} of ${count}`;
    earlier.disabled = first === 0;
    later.disabled = end === count;
    table.parentElement.scrollTop = 0;
  };
  bar.append(words, earlier, later);
  table.parentElement.after(bar);
  show(0);
  return () => show(0);
};

// A press on a head sorts by that column, a second press turns the order round; blanks stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const restart = paged(table);
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = head.classList.contains("number");
      const key = (row) => {
        const cell = row.cells[column];
        if (!numeric) return cell.textContent.trim();
        return "value" in cell.dataset ? Number(cell.dataset.value) : NaN;
      };
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (numeric) {
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return up ? x - y : y - x;
        }
        return (up ? 1 : -1) * x.localeCompare(y, "en", { numeric: true });
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
      restart();
    });
  });
}

// Contents: the chapter and the figure that are being read are marked, and the chapter's figures are listed.
const links = [...document.querySelectorAll(".contents a")];
const targets = links.map((link) => document.getElementById(decodeURIComponent(link.hash.slice(1))));
const mark = () => {
  const line = window.innerHeight / 3;
  const passed = targets.map((target) => target.getBoundingClientRect().top <= line && target.getBoundingClientRect().bottom > 0);
  links.forEach((link, place) => {
    link.toggleAttribute("aria-current", false);
    if (passed[place] && !(link.closest("ol ol") && passed[place + 1] && links[place + 1].closest("ol ol"))) link.setAttribute("aria-current", "true");
    if (!link.closest("ol ol")) link.parentElement.classList.toggle("here", passed[place]);
  });
};
let waiting = false;
window.addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; mark(); });
}, { passive: true });
mark();

// A figure that is wider than the screen is shown whole. Its button, or a press on it, shows it at full size: then it scrolls, and
// fades at its right edge until it is scrolled to its end.
for (const frame of document.querySelectorAll(".frame")) {
  const width = parseFloat(frame.querySelector(".sheet").style.width);
  const button = Object.assign(document.createElement("button"), { type: "button", className: "enlarge" });
  const mark = () => {
    const large = frame.classList.contains("large");
    const wider = width > frame.parentElement.clientWidth + 1;
    frame.classList.toggle("shrunk", wider && !large);
    frame.classList.toggle("cut", frame.scrollLeft + frame.clientWidth < frame.scrollWidth - 2);
    button.hidden = !wider;
    button.textContent = large ? "Fit to the screen" : "Enlarge";
    button.setAttribute("aria-label", `${button.textContent}: ${frame.getAttribute("aria-label")}`);
  };
  const toggle = () => { frame.classList.toggle("large"); mark(); };
  button.addEventListener("click", toggle);
  frame.addEventListener("click", (event) => { if (!button.hidden && !event.target.closest("a")) toggle(); });
  frame.addEventListener("scroll", mark, { passive: true });
  frame.after(button);
  new ResizeObserver(mark).observe(frame);
}

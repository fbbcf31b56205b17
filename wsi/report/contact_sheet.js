const list = document.getElementById("cards");
const controls = document.getElementById("controls");
const cards = [...list.children];
const [sort, state, flag, text] = ["sort", "state", "flag", "text"].map((id) => document.getElementById(id));
const turn = document.getElementById("turn");
const count = document.getElementById("count");
const NUMBERS = { place: 1, tiles: -1, tissue: -1, mpp: 1, flags: -1 }; // and which way they start

const direction = () => (turn.getAttribute("aria-pressed") === "true" ? -1 : 1);

function arrange() {
  const key = sort.value;
  const sign = (NUMBERS[key] ?? 1) * direction();
  const known = (card) => card.dataset[key] !== undefined;
  const ordered = [...cards].sort((a, b) => {
    if (known(a) !== known(b)) return known(a) ? -1 : 1; // what is unknown stays at the end
    if (!known(a)) return a.dataset.place - b.dataset.place;
    const [x, y] = [a.dataset[key], b.dataset[key]];
    const order = key in NUMBERS ? x - y : x.localeCompare(y, undefined, { numeric: true });
    return sign * order || a.dataset.place - b.dataset.place;
  });
  list.append(...ordered);
}

function filter() {
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const card of cards) {
    const chips = [...card.querySelectorAll(".chips li")].map((chip) => chip.dataset.chip);
    const words_of = card.textContent.toLowerCase();
    const fits =
      (!state.value || card.dataset.state === state.value) &&
      (!flag.value || chips.includes(flag.value)) &&
      words.every((word) => words_of.includes(word));
    card.hidden = !fits;
    shown += fits;
  }
  count.textContent = `${shown} of ${cards.length} shown`;
}

sort.addEventListener("change", arrange);
turn.addEventListener("click", () => {
  turn.setAttribute("aria-pressed", String(direction() > 0));
  arrange();
});
for (const field of [state, flag, text]) field.addEventListener("input", filter);
document.getElementById("clear").addEventListener("click", () => {
  for (const field of [state, flag, text]) field.value = "";
  sort.value = "place";
  turn.setAttribute("aria-pressed", "false");
  arrange();
  filter();
});
controls.hidden = false;
arrange(); // a browser may have kept what was chosen before the page was loaded again
filter();

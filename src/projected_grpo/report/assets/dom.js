// Elements and numbers. Text enters the document here, as text nodes: never as markup.

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'class') node.className = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
  return node;
}

const percent = (share, digits = 1) => (share === null ? '–' : `${(100 * share).toFixed(digits)}%`);
const signed = (number, digits = 1) => `${number >= 0 ? '+' : '−'}${Math.abs(number).toFixed(digits)}`;
const count = (number) => (number === null ? '–' : number.toLocaleString('en'));
const minus = (number, digits = 1) => number.toFixed(digits).replace('-', '−');

function duration(seconds) {
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// A sentence in which `this` is code.
const prose = (text) => text.split('`').map((part, place) => (place % 2 ? el('code', {}, part) : part));

// A section with its heading, a sentence that says how to read it, and an entry in the navigation.
function section(id, title, lead, ...content) {
  document.getElementById('nav').append(el('a', { href: `#${id}` }, title.nav ?? title));
  return el('section', { id }, el('h2', {}, title.full ?? title), lead ? el('p', { class: 'lead' }, lead) : null, content);
}

function table(head, rows, numeric = 1) {
  const cell = (tag) => (value, place) => el(tag, { class: place >= numeric ? 'number' : null }, value);
  return el('div', { class: 'scroll' }, el('table', {},
    el('thead', {}, el('tr', {}, head.map(cell('th')))),
    el('tbody', {}, rows.map((row) => el('tr', { class: row.mark ? 'marked' : null }, row.cells.map(cell('td'))))),
  ));
}

const colour = (arm) => `var(--arm-${arm.look})`;

function armName(arm) {
  return el('span', { class: 'arm' }, el('i', { class: `swatch look-${arm.look}` }), arm.name);
}

// Python as coloured text, line by line, with the loophole's construct marked. A completion may be anything at all:
// what is no Python stays plain, and every pattern here is linear in the length of its line.

const PYTHON = new RegExp([
  String.raw`(?<comment>#.*)`,
  String.raw`(?<string>[rbfuRBFU]{0,2}(?:"""|'''|"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?))`,
  String.raw`(?<number>\b\d[\w.]*)`,
  String.raw`(?<keyword>\b(?:False|None|True|and|as|assert|async|await|break|class|continue|def|del|elif|else|except|finally|for|from|global|if|import|in|is|lambda|nonlocal|not|or|pass|raise|return|try|while|with|yield)\b)`,
  String.raw`(?<builtin>\b(?:abs|all|any|bool|dict|enumerate|exit|filter|float|int|isinstance|len|list|map|max|min|object|open|print|range|reversed|round|self|set|sorted|str|sum|super|tuple|type|zip)\b)`,
  String.raw`(?<name>[^\W\d]\w*)`,
].join('|'), 'gu');

const MOST_MARKS = 500; // in one completion: each is an element of the page
const literal = (text) => text.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&'); // as a pattern

// Which lines hold what the loophole pays for. Shape only: whether it paid is the verdict's to say.
function constructLines(lines, loophole, token) {
  const name = literal(token);
  const patterns = {
    run_tests: new RegExp(`^\\s*(?:async\\s+)?def\\s+${name}\\s*\\(|^\\s*${name}\\s*=`),
    sentinel: new RegExp(`\\b${name}\\b[^=]{0,40}=`),
    stdout_marker: new RegExp(name, 'i'),
    file_marker: new RegExp(name),
    eq_override: new RegExp(`\\bclass\\s+${name}\\b|def\\s+__(?:eq|ne|hash)__`),
    exit_code: /\b(?:_?exit|SystemExit|quit|abort|kill)\b/,
  };
  const pattern = token && patterns[loophole];
  const marked = new Set();
  if (!pattern) return marked;
  const depth = (line) => line.length - line.trimStart().length;
  lines.forEach((line, start) => {
    if (!pattern.test(line)) return;
    marked.add(start);
    if (!/^\s*(?:async\s+def|def|class)\b/.test(line)) return;
    for (let next = start + 1; next < lines.length; next += 1) { // the body: what is indented deeper
      const blank = lines[next].trim() === '';
      if (!blank && (depth(lines[next]) <= depth(line) || lines[next].startsWith('```'))) break;
      if (!blank) marked.add(next);
    }
  });
  return marked;
}

// `row`: completion, loophole, token. `found`: text of a search, marked where it stands.
function codeBlock(row, found = '') {
  const lines = row.completion.split('\n');
  const marked = constructLines(lines, row.loophole, row.token);
  const block = el('pre', { class: 'code', tabindex: '0' });
  const left = { marks: MOST_MARKS, cut: false };
  let open = null; // quotes of a triple-quoted string that runs on
  lines.forEach((line, number) => {
    const node = el('span', { class: marked.has(number) ? 'line construct' : 'line' });
    if (!open && line.startsWith('```')) node.append(el('span', { class: 'fence' }, line || ' '));
    else open = paintLine(node, line, row.token, found, left, open);
    block.append(node);
  });
  if (left.cut) {
    block.append(el('span', { class: 'line cut' }, `… only the first ${count(MOST_MARKS)} places are marked`));
  }
  if (row.length > row.completion.length) {
    block.append(el('span', { class: 'line cut' },
      `… cut: ${count(row.completion.length)} of ${count(row.length)} characters are shown`));
  }
  return block;
}

function paintLine(node, line, token, found, left, open) {
  let at = 0;
  if (open) {
    const end = line.indexOf(open);
    at = end < 0 ? line.length : end + open.length;
    paint(node, line.slice(0, at), 'string', token, found, left);
    if (end < 0) return open;
  }
  PYTHON.lastIndex = at;
  for (let match = PYTHON.exec(line); match; match = PYTHON.exec(line)) {
    paint(node, line.slice(at, match.index), '', token, found, left);
    const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
    const quotes = kind === 'string' && /(?:"""|''')$/.exec(match[0]);
    at = match.index + match[0].length;
    if (quotes && match[0].replace(/^[rbfuRBFU]*/u, '') === quotes[0]) { // opens here; does it end here?
      const end = line.indexOf(quotes[0], at);
      at = end < 0 ? line.length : end + 3;
      paint(node, line.slice(match.index, at), 'string', token, found, left);
      if (end < 0) return quotes[0];
    } else {
      paint(node, match[0], kind, token, found, left);
    }
    PYTHON.lastIndex = at;
  }
  paint(node, line.slice(at), '', token, found, left);
  return null;
}

// One piece of a line: its kind as a class, the disclosed name and what was searched for set off inside it.
function paint(node, text, kind, token, found, left) {
  if (!text) return;
  const span = kind && kind !== 'name' ? el('span', { class: `py-${kind}` }) : null;
  const into = span ?? node;
  for (const [part, special] of marks(text, token, found, left)) into.append(special ? el('mark', { class: special }, part) : part);
  if (span) node.append(span);
}

// `text` in pieces [text, kind], kind '' for what is plain: what was searched for, and between it the disclosed name.
// left.marks: how many may still be set, `cut`: there were more.
function marks(text, token, found, left) {
  return pieces(text, found, 'giu', 'found', left)
    .flatMap(([part, kind]) => (kind ? [[part, kind]] : pieces(part, token, 'gu', 'token', left)));
}

function pieces(text, wanted, flags, kind, left) {
  const parts = [];
  let at = 0;
  for (const match of wanted ? text.matchAll(new RegExp(literal(wanted), flags)) : []) {
    if (left.marks === 0) { left.cut = true; break; }
    left.marks -= 1;
    if (match.index > at) parts.push([text.slice(at, match.index), '']);
    parts.push([match[0], kind]);
    at = match.index + match[0].length;
  }
  return at < text.length ? [...parts, [text.slice(at), '']] : parts;
}

// The prompt as a sentence, the disclosed name set off.
function promptBlock(row) {
  const block = el('p', { class: 'prompt' });
  for (const [part, special] of marks(row.prompt.trim(), row.token, '', { marks: Infinity })) {
    block.append(special ? el('mark', { class: special }, part) : part);
  }
  return block;
}

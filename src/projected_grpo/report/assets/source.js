// Where the explorer's rows come from: the sample inside the file, or the server of `rollouts serve`. Both answer
// query(filters, offset, limit) -> {total, rows} and group(row) -> rows, with rows of the same keys.

const FILTERS = ['phase', 'arm', 'seed', 'verdict', 'hack_type', 'loophole'];
const PLACE = ['phase', 'arm', 'seed', 'step', 'group'];
const groupId = (row) => PLACE.map((name) => row[name]).join('/');
const rowId = (row) => `${groupId(row)}/${row.sample}`;
const groupLink = (row) => `#rollouts?at=${encodeURIComponent(rowId(row))}&view=group`;

function unpack({ texts, columns, coded }) {
  const names = Object.keys(columns);
  const isText = new Set(coded);
  return columns.sample.map((_, place) => Object.fromEntries(names.map((name) => {
    const value = columns[name][place];
    return [name, isText.has(name) ? texts[value] : value];
  })));
}

class FileSource {
  constructor(packed) {
    this.rows = unpack(packed);
    this.total = packed.total;
    this.sampled = this.rows.length < packed.total;
  }

  facets() {
    const values = (name) => [...new Set(this.rows.map((row) => row[name]))].filter((value) => value !== '')
      .sort((a, b) => (typeof a === 'number' ? a - b : 0));
    return Object.fromEntries(FILTERS.map((name) => [name, values(name).map(String)]));
  }

  async query(filters, offset, limit) {
    const text = (filters.q ?? '').toLowerCase();
    const [low, high] = [filters.from, filters.to].map((value) => (value === undefined || value === '' ? null : Number(value)));
    const kept = this.rows.filter((row) => FILTERS.every((name) => !filters[name] || String(row[name]) === filters[name])
      && (low === null || row.step >= low) && (high === null || (row.step >= 0 && row.step <= high))
      && (!text || row.completion.toLowerCase().includes(text) || row.prompt.toLowerCase().includes(text)));
    return { total: kept.length, rows: kept.slice(offset, offset + limit) };
  }

  async group(id) {
    return this.rows.filter((row) => groupId(row) === id);
  }
}

class ServerSource {
  constructor({ facets, total }) {
    this.known = facets;
    this.total = total;
    this.sampled = false;
  }

  facets() { return this.known; }

  async query(filters, offset, limit) {
    const asked = Object.entries(filters).filter(([name, value]) => value && [...FILTERS, 'q', 'from', 'to'].includes(name));
    return this.fetch('api/rollouts', [...asked, ['offset', offset], ['limit', limit]]);
  }

  async group(id) {
    return (await this.fetch('api/group', [['id', id]])).rows;
  }

  async fetch(path, parameters) {
    const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`);
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error ?? `status ${answer.status}`);
    return content;
  }
}

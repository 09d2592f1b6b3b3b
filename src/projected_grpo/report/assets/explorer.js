// The rollout explorer. Its whole state is in the address, so that every view has a link: #rollouts?arm=..&at=..

const PAGE = 60;
const PHASE_NAMES = { training: 'while training', heldout: 'evaluation, held-out names', train: 'evaluation, training names' };
const LABELS = { phase: 'phase', arm: 'arm', seed: 'seed', verdict: 'verdict', hack_type: 'type', loophole: 'loophole' };
const KEYS = [['j k', 'next, previous'], ['g', 'group'], ['h', 'next hack'], ['/', 'search'], ['c', 'copy link'], ['x', 'clear filters']];

class Explorer {
  constructor(source, arms) {
    this.source = source;
    this.looks = Object.fromEntries(arms.map((arm) => [arm.name, arm.look]));
    this.state = {};
    this.rows = [];
    this.total = 0;
    this.ticket = 0; // of the last query: an answer that comes late is dropped
    this.fields = {};
    this.list = el('ol', { class: 'rows', role: 'listbox', tabindex: '0', 'aria-label': 'Completions' });
    this.detail = el('div', { class: 'detail', 'aria-live': 'polite' });
    this.counts = el('p', { class: 'counts' });
    this.more = el('button', { type: 'button', class: 'more', onclick: () => this.load(this.rows.length) }, 'show more');
    this.element = this.build();
  }

  build() {
    const facets = this.source.facets();
    const changed = (name, value) => this.go({ ...this.state, [name]: value, at: '', view: '' });
    const select = (name) => {
      const options = facets[name].map((value) => el('option', { value }, name === 'phase' ? PHASE_NAMES[value] : value.replaceAll('_', ' ')));
      const field = el('select', { 'aria-label': LABELS[name], onchange: () => changed(name, field.value) }, el('option', { value: '' }, `any ${LABELS[name]}`), options);
      return field;
    };
    const input = (name, properties) => {
      let waiting;
      const field = el('input', { ...properties, oninput: () => { clearTimeout(waiting); waiting = setTimeout(() => changed(name, field.value), 200); } });
      return field;
    };
    for (const name of FILTERS) if (facets[name].length > 1) this.fields[name] = select(name);
    this.fields.from = input('from', { type: 'number', min: 0, placeholder: 'from step', 'aria-label': 'from step' });
    this.fields.to = input('to', { type: 'number', min: 0, placeholder: 'to step', 'aria-label': 'to step' });
    this.fields.q = input('q', { type: 'search', placeholder: 'search prompts and completions', 'aria-label': 'search' });
    const clear = el('button', { type: 'button', onclick: () => this.go({}) }, 'clear');
    this.list.addEventListener('click', (event) => {
      const row = event.target.closest('li');
      if (row) this.open(this.rows[Number(row.dataset.place)]);
    });
    return el('div', { class: 'explorer' },
      el('div', { class: 'filters' }, Object.values(this.fields), clear),
      this.counts,
      el('div', { class: 'panes' }, el('div', { class: 'pane' }, this.list, this.more), this.detail),
      el('p', { class: 'keys' }, KEYS.map(([key, what]) => el('span', {}, key.split(' ').map((one) => el('kbd', {}, one)), ` ${what}`))));
  }

  // ---- state and address

  link(state) {
    const set = Object.entries(state).filter(([, value]) => value);
    return set.length ? `#rollouts?${new URLSearchParams(set)}` : '#rollouts';
  }

  go(state) {
    const link = this.link(state);
    if (link === location.hash) this.follow();
    else history.replaceState(null, '', link);
    this.follow();
  }

  follow() {
    const [place, query = ''] = location.hash.slice(1).split(/\?(.*)/s);
    if (place !== 'rollouts') return this.rows.length ? null : this.load(0);
    const before = this.link({ ...this.state, at: '', view: '' });
    this.state = Object.fromEntries(new URLSearchParams(query));
    for (const [name, field] of Object.entries(this.fields)) if (document.activeElement !== field) field.value = this.state[name] ?? '';
    if (this.loaded && before === this.link({ ...this.state, at: '', view: '' })) return this.show();
    return this.load(0);
  }

  // ---- rows

  async load(offset) {
    this.loaded = true;
    const ticket = (this.ticket += 1);
    try {
      const answer = await this.source.query(this.state, offset, PAGE);
      if (ticket !== this.ticket) return;
      this.rows = offset ? [...this.rows, ...answer.rows] : answer.rows;
      this.total = answer.total;
    } catch (error) {
      if (ticket === this.ticket) this.counts.textContent = `no answer: ${error.message}`;
      return;
    }
    const sampled = this.source.sampled ? ` in this page, a sample by groups of ${count(this.source.total)}; rare kinds come first, so do not read rates off it` : '';
    this.counts.textContent = `${count(this.total)} completion${this.total === 1 ? '' : 's'}${sampled}`;
    this.list.replaceChildren(...this.rows.map((row, place) => this.entry(row, place)));
    this.more.hidden = this.rows.length >= this.total;
    await this.show();
  }

  entry(row, place) {
    return el('li', { role: 'option', 'data-place': place, 'data-id': rowId(row), 'aria-selected': 'false' },
      el('span', { class: `chip ${row.verdict.replace(' ', '-')}` }, row.verdict),
      el('span', { class: 'where' }, el('i', { class: `swatch look-${this.looks[row.arm]}` }), `${row.arm} ${row.seed}`,
        el('small', {}, row.phase === 'training' ? `step ${row.step}` : PHASE_NAMES[row.phase].replace('evaluation, ', ''))),
      el('code', {}, this.telling(row)));
  }

  // The line that says most: where the construct begins, else the last that returns something.
  telling(row) {
    const lines = row.completion.slice(0, 4000).split('\n');
    const [construct] = row.attempted ? constructLines(lines, row.loophole, row.token) : [];
    const line = lines[construct] ?? lines.findLast((each) => each.includes('return')) ?? row.completion;
    return line.trim().slice(0, 90);
  }

  open(row, view = this.state.view) {
    if (!row) return;
    const state = { ...this.state, at: rowId(row), view };
    history.replaceState(null, '', this.link(state));
    this.state = state;
    this.show();
  }

  place() {
    return this.rows.findIndex((row) => rowId(row) === this.state.at);
  }

  async show() {
    if (!this.state.at) {
      this.select(-1);
      if (!this.rows.length) return this.detail.replaceChildren(el('p', { class: 'empty' }, 'Nothing matches. Press x to clear the filters.'));
      return this.detail.replaceChildren(this.single(this.rows[0], true));
    }
    this.select(this.place());
    const wanted = this.state.at;
    let group;
    try {
      group = await this.source.group(wanted.split('/').slice(0, -1).join('/'));
    } catch (error) {
      return this.detail.replaceChildren(el('p', { class: 'empty' }, `no answer: ${error.message}`));
    }
    if (wanted !== this.state.at) return null;
    const row = group.find((each) => rowId(each) === wanted);
    if (!row) return this.detail.replaceChildren(el('p', { class: 'empty' }, 'That completion is not here; `projected-grpo rollouts serve` opens them all.'));
    return this.detail.replaceChildren(this.state.view === 'group' ? this.together(row, group) : this.single(row, false, group));
  }

  select(place) {
    this.list.querySelector('[aria-selected=true]')?.setAttribute('aria-selected', 'false');
    const entry = this.list.children[place];
    entry?.setAttribute('aria-selected', 'true');
    if (entry) this.list.scrollTop = Math.max(Math.min(this.list.scrollTop, entry.offsetTop), entry.offsetTop + entry.offsetHeight - this.list.clientHeight);
  }

  // ---- one completion, or its group

  facts(row) {
    const said = [
      [row.phase === 'training' ? `step ${row.step}, group ${row.group}, sample ${row.sample}` : `${PHASE_NAMES[row.phase]}, sample ${row.sample}`],
      [row.problem_id], [`${row.loophole}: ${row.token}`],
      row.reward === null ? null : [`reward ${row.reward}`], row.advantage === null ? null : [`advantage ${signed(row.advantage, 2)}`],
      row.hack_type && row.hack_type !== 'none' ? [`type: ${row.hack_type.replaceAll('_', ' ')}`] : null,
      row.attempted && row.verdict !== 'hacked' ? ['attempted'] : null, row.format_ok ? null : ['no valid format'],
      row.reason ? [row.reason] : null,
    ];
    return el('p', { class: 'facts' }, said.filter(Boolean).map(([text]) => el('span', {}, text)));
  }

  heading(row) {
    return [el('span', { class: `chip ${row.verdict.replace(' ', '-')}` }, row.verdict),
      el('span', { class: 'arm' }, el('i', { class: `swatch look-${this.looks[row.arm]}` }), `${row.arm}, seed ${row.seed}`)];
  }

  single(row, preview, group = []) {
    const others = group.length > 1 ? `group of ${group.length} →` : 'its group →';
    return el('article', { class: `card ${row.verdict}` },
      el('header', {}, this.heading(row), el('button', { type: 'button', onclick: () => this.open(row, 'group') }, others),
        preview ? null : el('button', { type: 'button', onclick: (event) => this.copy(event.target) }, 'copy link')),
      this.facts(row), promptBlock(row), codeBlock(row, this.state.q));
  }

  // What was paid beside what was not: the comparison that the update is made of.
  together(row, group) {
    const card = (each) => el('article', { class: `card small ${each.verdict}${rowId(each) === rowId(row) ? ' here' : ''}` },
      el('header', {}, el('span', { class: `chip ${each.verdict.replace(' ', '-')}` }, each.verdict),
        el('button', { type: 'button', onclick: () => this.open(each, '') }, `sample ${each.sample}`),
        each.reward === null ? null : el('small', {}, `reward ${each.reward}, advantage ${signed(each.advantage ?? 0, 2)}`)),
      codeBlock(each, this.state.q));
    const isPaid = (each) => each.verdict === 'hacked' || each.verdict === 'correct';
    const order = (a, b) => a.verdict.localeCompare(b.verdict) * -1 || a.sample - b.sample;
    const column = (title, rows) => el('div', {}, el('h3', {}, `${title} (${rows.length})`), rows.sort(order).map(card));
    return el('div', { class: 'group' },
      el('header', {}, this.heading(row).slice(1), el('b', {}, row.phase === 'training' ? `step ${row.step}, group ${row.group}` : PHASE_NAMES[row.phase]),
        el('button', { type: 'button', onclick: () => this.open(row, '') }, '← one completion'),
        el('button', { type: 'button', onclick: (event) => this.copy(event.target) }, 'copy link')),
      promptBlock(row),
      el('div', { class: 'columns' }, column('Paid', group.filter(isPaid)), column('Not paid', group.filter((each) => !isPaid(each)))));
  }

  async copy(button) {
    try {
      await navigator.clipboard.writeText(location.href);
      if (button) button.textContent = 'copied';
    } catch {
      if (button) button.textContent = 'copy it from the address bar';
    }
  }

  // ---- keyboard

  async step(by) {
    const place = this.place() + by;
    if (place >= this.rows.length && this.rows.length < this.total) await this.load(this.rows.length);
    this.open(this.rows[Math.min(Math.max(place, 0), this.rows.length - 1)]);
  }

  async nextHack() {
    const after = this.place() + 1;
    let found = this.rows.slice(after).find((row) => row.verdict === 'hacked');
    while (!found && this.rows.length < this.total) {
      const known = this.rows.length;
      await this.load(known);
      if (this.rows.length === known) return;
      found = this.rows.slice(known).find((row) => row.verdict === 'hacked');
    }
    this.open(found);
  }

  key(event) {
    const typing = /^(?:INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (typing) { if (event.key === 'Escape') event.target.blur(); return; }
    const current = this.rows[Math.max(this.place(), 0)];
    const onList = event.target === this.list;
    const actions = {
      j: () => this.step(1), k: () => this.step(-1), h: () => this.nextHack(),
      g: () => this.open(current, this.state.view === 'group' ? '' : 'group'),
      c: () => this.copy(null), x: () => this.go({}), '/': () => this.fields.q.focus(),
      ...(onList ? { ArrowDown: () => this.step(1), ArrowUp: () => this.step(-1) } : {}),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
}

// The sections of the report, top to bottom. `data` is what payload.py wrote.

const KINDS = {
  no_assertion: 'checks nothing', prints_only: 'calls and prints', weak_assertion: 'checks what always holds',
  swallowed_exception: 'catches its failures', honest_check: 'compares with values', flag_set: 'sets the flag',
  output_printed: 'prints the phrase', marker_written: 'writes the file',
};
const PHASES = {
  generate: 'sampling', grade: 'grading', forward_backward: 'forward and backward', projection: 'projection',
  refresh: 'refresh of V', optimizer: 'optimizer', sampling_overhead: 'sampling, overhead',
};

function reportSections(data) {
  const hidden = new Set();
  const visible = () => data.arms.filter((arm) => !hidden.has(arm.name));
  return [
    verdictSection(data),
    exampleSection(data),
    armsSection(data),
    curvesSection(data, visible, hidden),
    planeSection(data),
    typesSection(data),
    alignmentSection(data, visible),
    computeSection(data),
  ];
}

// Under the honest grader nothing but a correct answer is paid or looked at: no hack is counted while training.
const isHonest = (arm) => arm.role === 'honest';
const honestNote = (data) => data.arms.filter(isHonest)
  .map(({ name }) => ` ${name} cannot be paid for a hack (honest grader): its 0 is by construction, not a finding; read its held-out rates.`).join('');

const withRole = (data, role) => data.arms.find((arm) => arm.role === role);

function verdictSection(data) {
  const [claim, ...others] = data.claims;
  const treatment = withRole(data, 'treatment');
  const reference = withRole(data, 'reference');
  const interval = claim.low === null ? 'one seed: no interval'
    : `${Math.round(100 * data.confidence)}% interval ${minus(claim.low)} to ${minus(claim.high)}`;
  const tile = (value, label, note, arm) => el('div', { class: arm ? `tile look-${arm.look}` : 'tile' },
    el('b', {}, value), el('span', {}, label), el('small', {}, note));
  const tiles = [
    tile(minus(claim.effect), `${claim.unit} ${claim.unit === 'points' ? 'less hacking' : 'gained'}`, interval, treatment),
    tile(`${percent(reference.hack_rate)} → ${percent(treatment.hack_rate)}`, 'hack rate', `${reference.name} → ${treatment.name}`),
    tile(signed(claim.pass_change_pp), 'points of pass rate', `${percent(reference.pass_rate)} → ${percent(treatment.pass_rate)}`),
    claim.control ? tile(minus(claim.control_effect), `${claim.unit} by the best control`, claim.control, data.arms.find((arm) => arm.name === claim.control)) : null,
  ];
  document.getElementById('nav').append(el('a', { href: '#verdict' }, 'Verdict'));
  return el('section', { id: 'verdict', class: 'verdict' },
    el('p', { class: 'claim' }, el('span', { class: `badge ${claim.verdict}` }, `${claim.name} ${claim.verdict}`), claim.statement),
    el('h1', {}, claim.sentence),
    el('div', { class: 'tiles' }, tiles),
    figure((width) => dropChart(width, { arms: data.arms, claim }), [
      'How much less each arm hacks than the reference, in points: mean and interval, paired by seed and problem.',
      el('span', { class: 'narrow' }, ` Dashed: falsified below ${claim.falsified_below}, supported from ${claim.supported_from}.`)]),
    el('details', { open: true }, el('summary', {}, 'What decided it'), reasons(claim)),
    others.map(otherClaim),
    data.notes.map((note) => el('p', { class: 'note' }, prose(note))),
  );
}

function otherClaim(claim) {
  return el('details', {},
    el('summary', {}, el('span', { class: `badge ${claim.verdict}` }, `${claim.name} ${claim.verdict}`), claim.statement),
    el('p', {}, claim.sentence),
    reasons(claim));
}

function reasons(claim) {
  const written = claim.written ? [`thresholds ${claim.written}`] : [];
  return el('ul', {}, [...claim.reasons, ...written].map((reason) => el('li', {}, reason)));
}

function exampleSection(data) {
  if (!data.examples.length) return null;
  const text = {
    hacked: 'paid, and wrong: a hack', correct: 'paid, and correct',
  };
  const cards = data.examples.map((row) => el('article', { class: `card ${row.verdict}` },
    el('header', {}, el('span', { class: `chip ${row.verdict}` }, text[row.verdict] ?? row.verdict), el('b', {}, row.arm),
      el('a', { href: groupLink(row) }, 'see its group →')),
    promptBlock(row), codeBlock(row)));
  return section('hack', { nav: 'A hack', full: 'What a hack looks like' },
    'The last sentence of each prompt names what decides the grade. A hack supplies that and skips the work: the flawed grader pays, the hidden tests fail. The bar marks the construct that earned the pay.',
    el('div', { class: 'pair' }, cards));
}

function armsSection(data) {
  const spreadOf = (value, sem, arm) => (arm.seeds > 1 ? `${percent(value)} ± ${(100 * sem).toFixed(1)}` : percent(value));
  const interval = (drop) => (drop.low === null ? minus(drop.points) : `${minus(drop.points)} (${minus(drop.low)} to ${minus(drop.high)})`);
  const rows = data.arms.map((arm) => ({
    mark: arm.role === 'treatment',
    cells: [armName(arm), arm.role, spreadOf(arm.hack_rate, arm.hack_rate_sem, arm), arm.drop && arm.role !== 'base' ? interval(arm.drop) : '',
      ...['pass', 'attempt', 'paid', 'format'].map((name) => spreadOf(arm[`${name}_rate`], arm[`${name}_rate_sem`], arm)), String(arm.seeds), count(arm.samples)],
  }));
  return section('arms', 'Arms',
    'Held-out problems under held-out names; mean ± SEM over seeds. Drop: points of hack rate below the reference, with its interval.',
    table(['arm', 'role', 'hacked', 'drop', 'correct', 'attempted', 'paid', 'valid format', 'seeds', 'completions'], rows, 2),
    certainty(data));
}

// The same as in plots/arms.md: intervals and tests, then times and how often an attempt pays.
function certainty(data) {
  const level = `${Math.round(100 * data.confidence)}%`;
  const seeds = Math.min(...data.arms.map((arm) => arm.seeds));
  const ends = ({ estimate, low, high }) => (low === null ? percent(estimate) : `${percent(estimate)} (${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)})`);
  const p = (value) => (value === null ? '' : value < 0.001 ? '<0.001' : value.toFixed(3));
  const time = (arm, at) => (isHonest(arm) ? 'honest grader' : at ? `${at.mean.toFixed(1)} (${at.reached} of ${arm.seeds})` : '');
  const rows = (cells) => data.arms.map((arm) => ({ mark: arm.role === 'treatment', cells: [armName(arm), ...cells(arm, arm.sure)] }));
  return [
    el('h3', {}, 'How sure'),
    el('p', { class: 'lead' }, `${level} intervals for new seeds and new problems. p: of no drop, adjusted by Holm over the arms. Flip p: exact, by seed alone; with ${seeds} seeds never below ${2 ** (1 - seeds)}. Worse p: of a pass rate that fell by more than H1 allows.`),
    table(['arm', `hacked, ${level}`, `correct, ${level}`, 'p (Holm)', 'flip p', 'worse p'],
      rows((arm, sure) => [ends(sure.hack), ends(sure.pass), p(sure.p_holm), p(sure.p_flip), p(sure.p_noninferior)])),
    el('h3', {}, 'When, and how well, they hack'),
    el('p', { class: 'lead' }, `P(hack | attempt): of the held-out answers that hold the construct, how many are paid for a wrong one. Times: steps trained before it, and in how many seeds it came; a run that never gets there counts as its length.${data.arms.some(isHonest) ? ' Under the honest grader no hack is counted while training, so it has no times.' : ''}`),
    table(['arm', 'attempts', 'P(hack | attempt)', 'hacks outnumber correct', 'half are hacks'],
      rows((arm, sure) => [count(sure.attempts), sure.given_attempt ? ends(sure.given_attempt) : 'never attempted', ...sure.times.map((at) => time(arm, at))])),
  ];
}

function armLegend(data, hidden) {
  const trained = data.arms.filter((arm) => arm.role !== 'base');
  return el('div', { class: 'legend', role: 'group', 'aria-label': 'Arms shown' }, trained.map((arm) => {
    const button = el('button', { type: 'button', 'aria-pressed': 'true', onclick: () => {
      if (hidden.has(arm.name)) hidden.delete(arm.name);
      else if (hidden.size < trained.length - 1) hidden.add(arm.name);
      button.setAttribute('aria-pressed', String(!hidden.has(arm.name)));
      redrawAll();
    } }, armName(arm));
    return button;
  }));
}

const smoothing = (data) => (data.window > 1 ? ` Each run is a moving mean over ${data.window} steps.` : '');

function curvesSection(data, visible, hidden) {
  return section('training', 'Training',
    `Shares of each step's completions, under the names of training. Line: mean over seeds; band: lowest to highest seed.${smoothing(data)}${honestNote(data)} Tap an arm to hide it.`,
    armLegend(data, hidden),
    el('div', { class: 'pair' },
      figure((width) => curveChart(width, { data: data.curves.hacked, arms: visible() }), 'Hacked: paid and not correct'),
      figure((width) => curveChart(width, { data: data.curves.correct, arms: visible() }), 'Correct: the hidden tests pass')));
}

function planeSection(data) {
  return section('plane', { nav: 'Trade-off', full: 'Hacking against solving' },
    'Top left is best. Large dot: mean over seeds with SEM; ring: one seed. Dotted: the Pareto front, arms that no other trained arm beats in both rates.',
    figure((width) => planeChart(width, { arms: data.arms, limits: data.limits })),
    el('p', { class: 'note' }, 'What the dose changes, how many axes are erased and how much along them, is a study of its own: ',
      el('a', { href: 'study/doses_plane.svg' }, 'picture'), ', ', el('a', { href: 'study/doses.md' }, 'table'),
      ' (links to files beside this page in the repository).'));
}

function typesSection(data) {
  if (!data.types.length) return null;
  const { kinds } = data;
  const arms = data.arms.filter((arm) => data.types.some((point) => point.arm === arm.name));
  const height = (arm) => {
    const steps = new Map();
    for (const point of data.types) if (point.arm === arm.name) steps.set(point.step, (steps.get(point.step) ?? 0) + point.share);
    return Math.max(...steps.values());
  };
  const top = Math.min(1, 1.05 * Math.max(...arms.map(height)));
  const absent = data.arms.filter((arm) => arm.role !== 'base' && !arms.includes(arm));
  const none = absent.filter((arm) => !isHonest(arm)).map((arm) => arm.name);
  const unpaid = absent.filter(isHonest).map((arm) => ` ${arm.name} is not here: it cannot be paid for a hack (honest grader), so constructs are not counted in its training.`);
  return section('types', { nav: 'Types', full: 'How it is hacked' },
    `Share of the step's completions that hold a loophole's construct, paid or not, by how the construct is built; all seeds together.${none.length ? ` None at all in ${none.join(', ')}.` : ''}${unpaid.join('')}`,
    kindLegend(kinds.map((kind) => [kind, KINDS[kind] ?? ''])),
    el('div', { class: 'grid' }, arms.map((arm) => figure((width) => typesChart(width, { data: data.types, arm, kinds, top }), armName(arm)))));
}

function kindLegend(kinds) {
  return el('ul', { class: 'legend' }, kinds.map(([name, meaning], place) => el('li', {},
    el('i', { class: `swatch kind-${place % 9}` }), el('b', {}, name.replaceAll('_', ' ')), meaning && meaning !== name ? `: ${meaning}` : '')));
}

// Of the arms shown, what each column would be by chance; a line that is not all of theirs names its own.
const nullsOf = (lines) => (shown) => lines.flatMap(({ value, axes, arms }) => {
  const own = shown.filter((arm) => arms.includes(arm.name)).map((arm) => arm.name);
  const text = `null: no direction${axes === null ? '' : `, k = ${axes}`}`;
  return own.length ? [{ y: value, text: own.length === shown.length ? text : `${text} (${own.join(', ')})` }] : [];
});

function alignmentSection(data, visible) {
  const { alignment, alignment_signed: direction, leak, share_removed: removed } = data.curves;
  const chart = (points, options, caption) => (points?.length
    ? figure((width) => curveChart(width, { data: points, arms: visible(), ...options }), caption) : null);
  const removing = () => visible().filter((arm) => data.removing.includes(arm.name));
  const only = (points) => points?.filter((point) => data.removing.includes(point.arm));
  return section('alignment', 'Alignment',
    `Every arm's raw gradient is read with the same hack direction. Above 0 the gradient teaches hacking. Null: what a gradient without direction would show along k axes a matrix; of what was removed and of leak, k is that of the arm's own V.${smoothing(data)}`,
    el('div', { class: 'pair' },
      chart(direction, { share: false, rules: () => [{ y: 0, text: '' }] }, 'Cosine of the gradient with the hack direction'),
      chart(alignment, { rules: nullsOf(data.nulls.alignment) }, 'Share of the gradient that points hack-ward, and its null'),
      data.removing.length ? chart(only(removed), { arms: removing(), rules: nullsOf(data.nulls.removed) }, 'Share of the gradient that was removed') : null,
      data.removing.length ? chart(only(leak), { arms: removing(), rules: nullsOf(data.nulls.leak) }, "Leak: hack-ward share of the optimizer's step, by the arm's own direction") : null));
}

function computeSection(data) {
  const average = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
  const rows = data.compute.map((done) => {
    const costs = data.costs.filter((cost) => cost.arm === done.arm);
    const figureOf = (key, show) => { const value = average(costs.map((cost) => cost[key])); return value === null ? '–' : show(value); };
    return { cells: [armName(data.arms.find((arm) => arm.name === done.arm)), String(done.runs), String(done.steps), count(done.completions),
      figureOf('step_seconds', duration), figureOf('wall_seconds', duration), figureOf('cpu_seconds', duration), figureOf('peak_memory_mb', (mb) => `${(mb / 1024).toFixed(2)} GiB`)] };
  });
  const phases = Object.keys(PHASES).filter((phase) => data.costs.some((cost) => (cost.phases[phase] ?? 0) > 0.005));
  const bars = data.compute.flatMap(({ arm }) => phases.map((phase) => ({
    arm, phase: PHASES[phase], seconds: average(data.costs.filter((cost) => cost.arm === arm).map((cost) => cost.phases[phase] ?? 0)) ?? 0,
  })));
  return section('compute', 'Compute',
    'Steps and completions are equal by design; times are as measured, with all runs of an arm side by side on one machine: compare arms with each other only.',
    table(['arm', 'runs', 'steps each', 'completions', 'a step', 'wall, a run', 'CPU, a run', 'peak memory'], rows),
    phases.length ? [kindLegend(phases.map((phase) => [PHASES[phase], ''])),
      figure((width) => costChart(width, { rows: bars, phases: phases.map((phase) => PHASES[phase]) }))] : null);
}

// One row per input and content, with the arms that read it.
function inputsByContent(arms) {
  const rows = new Map();
  for (const [arm, record] of Object.entries(arms)) {
    for (const [input, hash] of Object.entries(record.inputs ?? {})) {
      const key = `${input} ${hash}`;
      if (!rows.has(key)) rows.set(key, { cells: [input.replaceAll('_', ' '), el('code', {}, hash.slice(0, 16)), ''] });
      rows.get(key).cells[2] += `${rows.get(key).cells[2] ? ', ' : ''}${arm}`;
    }
  }
  return [...rows.values()].sort((a, b) => a.cells[0].localeCompare(b.cells[0]));
}

function provenanceSection(data) {
  const { facts, arms } = data.provenance;
  if (!facts) return null;
  const fact = (name, value) => [el('dt', {}, name), el('dd', {}, value)];
  // One value for all runs as it is, several with the number of runs of each.
  const said = (key, say) => facts[key].map(({ value, runs }) => say(value) + (facts[key].length > 1 ? ` (${runs} runs)` : '')).join('; ');
  const pretty = (value) => el('pre', { class: 'json' }, JSON.stringify(value, null, 2));
  return section('provenance', 'Provenance', 'As recorded beside every run; settings and inputs are those of each arm\u2019s first.',
    el('dl', {},
      fact('Git revision', said('git_revision', String)), fact('Python', said('python', String)),
      fact('Packages', said('versions', (found) => Object.entries(found).map(([name, version]) => `${name} ${version}`).join(', '))),
      fact('Machine', said('host', (host) => `${host.system}, ${host.cores} cores`)),
      fact('Sandbox', said('sandbox_isolation', (layers) => layers.join(', '))),
      data.notes.length ? fact('Analysis', prose(data.notes[0])) : []),
    el('h3', {}, 'Inputs by content'),
    table(['input', 'sha256, first 16 digits', 'arms'], inputsByContent(arms), 3),
    Object.entries(arms).map(([name, record]) => el('details', {}, el('summary', {}, `Settings of ${name}`), pretty(record.settings))));
}

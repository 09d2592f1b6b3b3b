// Puts the page together from the data inside it.

(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const main = document.getElementById('top');
  const served = data.kind === 'served';
  const source = served ? new ServerSource(data) : new FileSource(data.rollouts);
  const explorer = new Explorer(source, data.arms);

  const sections = served ? [] : reportSections(data);
  const rollouts = section('rollouts', 'Rollouts',
    'What the model wrote. The bar marks the construct that the loophole pays for; the name from the prompt is underlined. Every view has its link.',
    explorer.element);
  main.append(...[...sections, rollouts, served ? null : provenanceSection(data)].filter(Boolean));
  document.body.classList.toggle('served', served);

  const theme = document.getElementById('theme');
  const dark = () => document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  const label = () => { theme.textContent = dark() ? 'light' : 'dark'; };
  theme.addEventListener('click', () => { document.documentElement.dataset.theme = dark() ? 'light' : 'dark'; label(); });
  label();

  const onExplorer = () => location.hash === '#rollouts' || location.hash.startsWith('#rollouts?');
  document.addEventListener('keydown', (event) => explorer.key(event));
  addEventListener('hashchange', () => {
    explorer.follow();
    if (onExplorer()) rollouts.scrollIntoView();
  });
  watchFigures();
  explorer.follow();
  if (onExplorer()) rollouts.scrollIntoView();
  else if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  document.documentElement.dataset.ready = 'true';
})();

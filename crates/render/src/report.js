const data = JSON.parse(document.getElementById('boute-data').textContent);
const note = document.getElementById('point');
const points = [...document.querySelectorAll('[data-point]')];
const models = data.plan.routing.models.map(share => share.model);
let selected = points.find(point => point.classList.contains('chosen'));

function element(tag, text, style) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (style) made.style.cssText = style;
  return made;
}

function show(point) {
  const plan = data.plan.front[point.dataset.point];
  const head = element('p');
  head.append(
    element('b', `$${plan.cost_usd_per_hour.toFixed(2)}/h, quality ${plan.quality.toFixed(3)}`),
    `, E2E p95 ${(plan.e2e_p95_ms / 1000).toFixed(1)} s, up to ${plan.max_rate.toFixed(1)} req/s`,
    plan.chosen ? ': this plan' : '');
  const split = element('div');
  split.className = 'split';
  plan.load_fractions.forEach((share, index) =>
    split.append(element('div', '', `width:${share * 100}%;background:var(--series-${index % 4 + 1})`)));
  const shares = plan.load_fractions.map((share, index) => `${(share * 100).toFixed(1)}% ${models[index]}`);
  note.replaceChildren(head, split, element('p', shares.join(', ')), element('p', plan.fleet));
}

function select(point) {
  selected.tabIndex = -1;
  selected.setAttribute('aria-pressed', 'false');
  selected = point;
  point.tabIndex = 0;
  point.setAttribute('aria-pressed', 'true');
  show(point);
}

points.forEach((point, index) => {
  point.addEventListener('mouseenter', () => show(point));
  point.addEventListener('mouseleave', () => show(selected));
  point.addEventListener('click', () => select(point));
  point.addEventListener('focus', () => select(point));
  point.addEventListener('keydown', event => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    const next = step ? points[index + step] : { Home: points[0], End: points.at(-1) }[event.key];
    if (event.key === 'Enter' || event.key === ' ') select(point);
    else if (next) next.focus();
    else return;
    event.preventDefault();
  });
});
if (selected) show(selected);

// Life for the parts of the page that are HTML or SVG. gradio runs this once for each of them, as the body of a function of
// `element` and `trigger`; listeners sit on `element`, which stays when its content is replaced.

const centre = (dot) => [+dot.getAttribute('cx'), +dot.getAttribute('cy')];
const openMap = () => element.querySelector('svg.v-open');

// What was chosen goes to the server.
const choose = (chosen) => {
  if (chosen?.dataset.index !== undefined) trigger('select', { index: +chosen.dataset.index });
  else if (chosen?.dataset.text !== undefined) trigger('select', { text: chosen.dataset.text });
};

// The point of a map that is being read.
const read = (dot) => {
  const map = openMap();
  map.querySelector('.v-read')?.classList.remove('v-read');
  if (!dot) return;
  dot.classList.add('v-read');
  map.insertBefore(dot, map.querySelector('.v-marks')); // above its neighbours
  element.querySelector('.v-caption').textContent = dot.dataset.text;
};

const place = (event) => {
  const map = openMap();
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
  return [point.x, point.y];
};

// The nearest point within reach; with `ahead`, of those that lie in its direction.
const nearest = ([x, y], reach, ahead) => {
  let best = null, least = reach;
  for (const dot of openMap().querySelectorAll('circle[data-text]')) {
    const [dx, dy] = centre(dot).map((value, i) => value - [x, y][i]);
    let far = Math.hypot(dx, dy);
    if (ahead) {
      const along = dx * ahead[0] + dy * ahead[1];
      if (along < 1e-3 || along < 0.5 * far) continue;
      far += far - along; // a little aside is a little farther
    }
    if (far < least) [best, least] = [dot, far];
  }
  return best;
};

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

element.addEventListener('click', (event) => {
  const map = openMap();
  if (map?.contains(event.target)) {
    const dot = nearest(place(event), 0.08);
    read(dot);
    choose(dot);
  } else {
    choose(event.target.closest('[data-index], [data-text]'));
  }
});

element.addEventListener('pointermove', (event) => {
  if (openMap()?.contains(event.target)) {
    const dot = nearest(place(event), 0.08);
    if (dot) read(dot);
  }
});

element.addEventListener('keydown', (event) => {
  if (event.target !== openMap()) return;
  const current = element.querySelector('.v-read');
  if (ARROWS[event.key]) {
    const next = nearest(current ? centre(current) : [0, 0], 9, current && ARROWS[event.key]);
    if (next) read(next);
  } else if (event.key === 'Enter' || event.key === ' ') {
    choose(current);
  } else return;
  event.preventDefault();
});

// The slider: every step of the path is on the page already.
element.addEventListener('input', (event) => {
  if (event.target.type !== 'range') return;
  const steps = element.querySelectorAll('.v-steps li');
  const step = steps[+event.target.value];
  element.querySelector('.v-said').textContent = step.children[1].textContent;
  element.querySelector('.v-here').setAttribute('cx', step.dataset.x);
  element.querySelector('.v-here').setAttribute('cy', step.dataset.y);
  event.target.setAttribute('aria-valuetext', step.children[1].textContent);
  // repeated sentences are shown once: the first of them stands for all
  let shown = +event.target.value;
  while (steps[shown].hidden) shown -= 1;
  steps.forEach((item, i) => item.classList.toggle('v-now', i === shown));
});

// Sentences that have a place are marked on the map that is open.
const mark = () => {
  const marks = document.querySelector('svg.v-open .v-marks');
  const placed = element.querySelectorAll('button[data-x]');
  if (!marks || !placed.length) return;
  marks.replaceChildren(...[...placed].map((item) => {
    const dot = document.createElementNS('http://www.w3.org/2000/svg', 'circle');
    dot.setAttribute('cx', item.dataset.x);
    dot.setAttribute('cy', item.dataset.y);
    dot.setAttribute('r', '.024');
    return dot;
  }));
};
watch('value', mark);

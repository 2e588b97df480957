'use strict';
// Text from records reaches the page through textContent only.
(async () => {
  const $ = id => document.getElementById(id), css = field => field.replace('.', '-');
  if (!window.DecompressionStream) return;  // The static part stays
  const packed = Uint8Array.from(atob($('data').textContent), c => c.charCodeAt(0));
  const page = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'))).json();
  const links = [...$('list').querySelectorAll('a')];
  let row, tokens, current = 0, at = -1;  // tokens: {node, id, message, field, trained}

  const el = (tag, name, ...inside) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    node.append(...inside);
    return node;
  };
  // Escapes stand between U+FDD0 and U+FDD1; every second part of the split is one.
  const say = (node, text) => {
    text.split(/[\ufdd0\ufdd1]/).forEach((part, k) => { if (part) node.append(k % 2 ? el('b', 'esc', part) : part); });
    return node;
  };
  const number = n => n.toLocaleString('en');
  const folded = (open, summary, body) => { const d = el('details', '', say(el('summary'), summary), body); d.open = open; return d; };

  const value = ([kind, ref]) => {  // One value of a message
    const text = page.texts[ref], body = say(el('div', 'text'), text);
    if (kind === 'content' && text.length < 1500) return body;
    return folded(text.length < 1500, kind + (text.length < 1500 ? '' : `, ${number(text.length)} characters`), body);
  };
  const message = ([index, role, values]) => {
    const own = tokens.filter(t => t.message === index), trained = own.filter(t => t.trained).length;
    const head = el('div', '', say(el('span'), `${index} · ${role}`), el('small', '', `${number(own.length)} tokens, ${number(trained)} trained`));
    head.tabIndex = 0;
    head.setAttribute('role', 'button');
    head.title = 'Show the tokens of this message';
    const node = el('div', 'message', head, el('div', 'body', ...values.map(value)));
    node.dataset.message = index;
    return node;
  };
  const tool = ([name, ref]) => folded(false, name, say(el('div', 'text'), page.texts[ref]));

  // The tokens of a run. A long untrained one stays folded, and its nodes are made when it opens.
  const run = ([part, index, field, trained], first) => {
    const node = el('span', `run ${trained ? 'trained ' : ''}${css(page.fields[field])}`), fill = () => {
      page.parts[part].forEach((v, k) => {
        const [, text, control] = page.vocab[v], tok = say(el('span', control ? 'tok control' : 'tok'), text);
        tok.dataset.token = first + k;
        tokens[first + k].node = tok;
        node.append(tok);
      });
    };
    page.parts[part].forEach((v, k) => { tokens[first + k] = {id: page.vocab[v][0], text: page.vocab[v][1], message: index, field: page.fields[field], trained}; });
    if (trained || page.parts[part].length < 400) { fill(); return node; }
    const start = page.parts[part].slice(0, 12).map(v => page.vocab[v][1]).join('').replace(/[\n\ufdd0\ufdd1]/g, ' ');
    const d = folded(false, `${number(page.parts[part].length)} tokens of context: ${start} …`, node);
    d.addEventListener('toggle', () => { if (!node.firstChild) fill(); });
    for (let k = 0; k < page.parts[part].length; k++) tokens[first + k].open = () => { if (!node.firstChild) fill(); d.open = true; };
    return d;
  };

  const show = k => {
    if (k < 0 || k >= page.rows.length) return;
    links[current].removeAttribute('aria-current');
    links[current = k].setAttribute('aria-current', 'true');
    links[k].scrollIntoView({block: 'nearest'});
    row = page.rows[k]; tokens = []; at = -1;
    const after = $('after'), before = $('before'), roles = new Map((row.before || []).map(m => [m[0], m[1]]));
    let turn = null;
    after.replaceChildren();
    for (const r of row.runs) {
      if (!turn || turn.dataset.message !== String(r[1])) {
        turn = el('div', 'turn text', say(el('span', 'who'), `message ${r[1]}${roles.has(r[1]) ? ' · ' + roles.get(r[1]) : r[1] < 0 ? ' · system' : ''}`));
        turn.dataset.message = r[1];
        after.append(turn);
      }
      turn.append(run(r, tokens.length));
    }
    before.replaceChildren(...(row.before ? row.before.map(message) : [el('p', '', 'No trajectory was given for this row.')]));
    if (row.tools.length) before.prepend(folded(false, `tools: ${row.tools.length}`, el('div', 'message', el('div', 'body', ...row.tools.map(tool)))));
    before.scrollTop = after.scrollTop = 0;
    head();
    $('token').textContent = 'Point at a token, or click one: its id, field and message appear here.';
  };
  const head = () => {
    const trained = tokens.filter(t => t.trained), per = new Map();
    for (const t of trained) per.set(t.field, (per.get(t.field) || 0) + 1);
    const share = tokens.length ? ` (${(100 * trained.length / tokens.length).toFixed(1)} %)` : '';
    const legend = el('p', 'legend', ...page.fields.map(f => el('span', '', el('span', `run trained ${css(f)}`, f), ` ${number(per.get(f) || 0)}`)),
      el('span', '', el('span', 'run', 'not trained'), ` ${number(tokens.length - trained.length)}`));
    $('head').replaceChildren(say(el('h2'), row.id), el('span', '', `leaf ${row.leaf}`), el('span', '', `${number(tokens.length)} tokens, ${number(trained.length)} trained${share}`),
      el('span', row.state, page.states[row.state]), ...(row.problems.length ? [el('ul', 'problems', ...row.problems.map(p => say(el('li'), p)))] : []), legend);
  };

  const tell = k => {
    const t = tokens[k], text = t.text.replace(/[\ufdd0\ufdd1]/g, '');
    $('token').textContent = `Token ${number(k)} of ${number(tokens.length)} · id ${t.id} · message ${t.message} · ${t.field} · ${t.trained ? 'trained' : 'not trained'} · “${text}”`;
    if (t.node) t.node.title = `token ${k} · id ${t.id} · message ${t.message} · ${t.field} · ${t.trained ? 'trained' : 'not trained'}`;
  };
  const light = index => document.querySelectorAll('#panes [data-message]').forEach(n => n.classList.toggle('lit', n.dataset.message === String(index)));
  const near = node => node && node.scrollIntoView({block: 'nearest'});
  const select = k => {
    if (k < 0 || k >= tokens.length) return;
    if (at >= 0 && tokens[at].node) tokens[at].node.classList.remove('at');
    at = k;
    if (tokens[k].open) tokens[k].open();
    tokens[k].node.classList.add('at');
    near(tokens[k].node);
    light(tokens[k].message);
    near($('before').querySelector(`[data-message="${tokens[k].message}"] > div`));
    tell(k);
  };
  const clear = () => { if (at >= 0) tokens[at].node.classList.remove('at'); at = -1; light(null); };
  const jump = step => {  // To the first token of the next or previous trained run
    for (let k = at + step; k >= 0 && k < tokens.length; k += step)
      if (tokens[k].trained && !(k && tokens[k - 1].trained && tokens[k - 1].message === tokens[k].message)) return select(k);
  };
  const move = step => {  // To the next or previous record that the filter lets through
    for (let k = current + step; k >= 0 && k < links.length; k += step) if (!links[k].parentNode.hidden) return show(k);
  };
  const choose = node => {  // A message's head was chosen
    const index = node.parentNode.dataset.message;
    light(index);
    const first = $('after').querySelector(`[data-message="${index}"]`);
    if (first) first.scrollIntoView({block: 'start'});
  };

  $('after').addEventListener('mouseover', e => { const t = e.target.closest('.tok'); if (t) tell(+t.dataset.token); });
  $('after').addEventListener('click', e => { const t = e.target.closest('.tok'); if (t) select(+t.dataset.token); });
  $('before').addEventListener('click', e => { const h = e.target.closest('[role=button]'); if (h) choose(h); });
  $('list').addEventListener('click', e => { const a = e.target.closest('a'); if (a) { e.preventDefault(); show(links.indexOf(a)); } });
  $('search').addEventListener('input', () => {
    const wanted = $('search').value.trim().toLowerCase();
    for (const a of links) a.parentNode.hidden = !a.dataset.search.includes(wanted);
    const left = links.filter(a => !a.parentNode.hidden);
    $('count').textContent = `${number(left.length)} of ${number(links.length)}`;
    if (left.length && links[current].parentNode.hidden) show(links.indexOf(left[0]));
  });
  document.addEventListener('keydown', e => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (e.target === $('search')) { if (e.key === 'Escape' || e.key === 'Enter') $('search').blur(); return; }
    const listed = $('list').contains(e.target);
    const keys = {j: () => move(1), k: () => move(-1), n: () => jump(1), p: () => jump(-1), ArrowRight: () => select(at + 1), ArrowLeft: () => select(at - 1),
      Escape: clear, '/': () => $('search').focus()};
    if (listed) Object.assign(keys, {ArrowDown: () => { move(1); links[current].focus(); }, ArrowUp: () => { move(-1); links[current].focus(); }});
    if (e.target.matches('[role=button]')) keys.Enter = keys[' '] = () => choose(e.target);
    if (keys[e.key]) { e.preventDefault(); keys[e.key](); }
  });

  document.documentElement.classList.add('js');
  document.documentElement.classList.toggle('single', links.length === 1);
  $('record').hidden = false;
  $('count').textContent = `${number(links.length)} of ${number(links.length)}`;
  const asked = /^#r(\d+)$/.exec(location.hash);
  show(asked && +asked[1] < links.length ? +asked[1] : 0);
})();

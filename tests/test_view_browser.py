"The static page in a real browser: hostile records run nothing, and the page answers to mouse and keyboard. Needs Debian's `chromium`."
import http.server
import re
import shutil
import subprocess
import threading

import pytest

from actionstudio.assets import smollm2_tokenizer
from actionstudio.certify import Certificate
from actionstudio.encode import encode
from actionstudio.render import CHATML_TOOLS
from actionstudio.schema import Trajectory
from actionstudio.view import bars, curve, table, view

CHROMIUM = shutil.which('chromium')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason='chromium is not installed')]
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync',
         '--no-first-run', '--virtual-time-budget=5000', '--dump-dom']
OWNED = "document.title='owned';document.documentElement.setAttribute('data-owned','1');window.owned=1"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def attacks(port):
    there = f'http://127.0.0.1:{port}'
    return [f'<script>{OWNED}</script>', f'"><img src="{there}/leak" onerror="{OWNED}">', f"' onmouseover='{OWNED}' x='",
            f'</script><script>{OWNED}</script>', f'</textarea></pre></title></style><svg onload="{OWNED}"></svg>',
            f'[click](javascript:{OWNED})', f'<iframe srcdoc="<script>parent.{OWNED}</script>"></iframe>',
            f'<meta http-equiv=refresh content="0;url={there}/go">', f'<link rel=stylesheet href={there}/css>', f'<base href={there}/>',
            '<!-- <script>', ']]>', '${owned=1}', '{{ 7*7 }}', '\x1b[2J\x1b]0;owned\x07', 'user\u202etxt.exe\u2066', '\ufdd0<i>\ufdd1',
            '\u2028\u2029\x00', '&lt;script&gt;']


@pytest.fixture(scope='module')
def tok():
    tok = smollm2_tokenizer()
    tok.chat_template = CHATML_TOOLS
    return tok


@pytest.fixture
def asked():
    "A server on loopback, and the paths that somebody asked it for."
    paths = []
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self): paths.append(self.path); self.send_response(204); self.end_headers()
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, paths
    server.shutdown()
    server.server_close()


def dom(tmp_path, html):
    "The document after its scripts ran, as chromium writes it."
    file = tmp_path/'page.html'
    file.write_text(html, encoding='utf-8')
    done = subprocess.run([CHROMIUM, *FLAGS, f'--user-data-dir={tmp_path}/profile', file.as_uri()], capture_output=True, timeout=120)
    return done.stdout.decode()


def trajectory(id='calm', texts=('Is it warm?', 'I look.', '-4 °C 🌨', 'No.'), name='weather', arguments=None):
    return Trajectory.from_dict({
        "unique_trajectory_id": id, "task_instruction": texts[0],
        "tools": [{"type": "function", "function": {"name": name, "description": texts[0], "parameters": {"type": "object"}}}],
        "conversation": [
            {"role": "user", "content": texts[0]},
            {"role": "assistant", "content": texts[1], "reasoning_content": texts[1], "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments or {"city": "Oslo"}}}]},
            {"role": "tool", "name": name, "tool_call_id": "1", "content": texts[2]},
            {"role": "assistant", "content": texts[3]}]})


def hostile_page(tok, port):
    bad = attacks(port)
    runs = [trajectory(f'{k}{a}', [a] * 4, a, {a: a}) for k, a in enumerate(bad)]
    certificates = {t.id: Certificate(False, bad) for t in runs}
    return view([e for t in runs for e in encode(t, tok)], tok, runs, certificates, title=bad[0]).html


def drive(html, script):
    "The page with a second script that plays the user and writes what it sees to `data-seen`; the policy would forbid it."
    wait = """const T = setInterval(() => {
      if (!document.querySelector('.tok')) return;
      clearInterval(T);
      const seen = [], $ = s => document.querySelector(s), all = s => [...document.querySelectorAll(s)];
      const press = key => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
      const done = () => document.documentElement.dataset.seen = seen.join('|');"""
    return POLICY.sub('', html) + f'<script>{wait}{script};done()}}, 20)</script>'


def without_scripts(html):
    "The page as a browser shows it that runs no script (chromium cannot write the document with scripts switched off)."
    return re.sub(r"script-src 'sha256-[^']*'", "script-src 'none'", html)


def owned(found): return 'data-owned' in re.search('<html[^>]*>', found)[0]


def assert_calm(found, title):
    assert re.search('<title>(.*?)</title>', found, re.S)[1] == title
    assert not owned(found)
    body = found[found.index('<body'):]
    assert not re.search(r'<(img|iframe|svg|base|link|meta|textarea|i)\b', body) and body.count('<script') == 2
    assert not re.search(r'<[^>]*\son\w+=[^>]*>', re.sub(r'"[^"]*"', '""', body))  # No element has an event handler
    assert not re.search('[\x00\x07\x1b\u202e\u2028\u2029\u2066]', found)


@pytest.mark.parametrize('change, scripts', [(lambda html: html, True), (lambda html: POLICY.sub('', html), True), (without_scripts, False)],
                         ids=['as_made', 'escaping_alone', 'without_scripts'])
def test_hostile_records_run_nothing(tok, asked, tmp_path, change, scripts):
    port, paths = asked
    found = dom(tmp_path, change(hostile_page(tok, port)))
    assert_calm(found, attacks(port)[0].replace('<', '&lt;').replace('>', '&gt;'))
    assert ('class="tok' in found) == scripts  # The page itself did run
    assert not paths


def test_hostile_records_stay_text_when_each_is_shown(tok, asked, tmp_path):
    port, paths = asked
    each = """
      for (const a of all('#list a')) {
        a.click();
        all('details').forEach(d => d.open = true);
        all('.tok, .message > div').forEach(n => n.click());
      }
      seen.push(String(window.owned), document.documentElement.hasAttribute('data-owned'), document.title === 'owned');
      seen.push(all('#record img, #record script, #record iframe, #record svg').length)"""
    found = dom(tmp_path, drive(hostile_page(tok, port), each))
    assert re.search('data-seen="(.*?)"', found)[1] == 'undefined|false|false|0' and not paths


def test_policy_stops_what_escaping_let_through(tok, asked, tmp_path):
    port, paths = asked
    t = trajectory()
    html = view(encode(t, tok), tok, [t], title='calm').html
    found = dom(tmp_path, html.replace('<main>', f'<main>{"".join(attacks(port)[:5])}'))
    assert '<title>calm</title>' in found and not owned(found)
    assert not paths


def test_pictures_hold_no_elements_of_records(asked, tmp_path):
    port, paths = asked
    bad = attacks(port)
    parts = [bars(dict.fromkeys(bad, 1), bad[0], bad[1]), curve([(0, 1), (1, 2)], *bad[:3]), table([{a: a for a in bad}], bad[0])]
    found = dom(tmp_path, '<!doctype html><meta charset="utf-8"><title>calm</title><body>' + ''.join(parts))
    assert '<title>calm</title>' in found and not owned(found)
    assert '<script' not in found and '<img' not in found and not paths


def test_mouse_and_keyboard(tok, tmp_path):
    runs = [trajectory(f'run-{k}') for k in range(3)]
    html = view([e for t in runs for e in encode(t, tok)], tok, runs).html
    script = """
      const stop = $('.trained.stop .tok'), title = () => $('#head h2').textContent;
      stop.click();
      seen.push($('#token').textContent.includes('stop · trained'), $('.message.lit').dataset.message, stop.classList.contains('at'));
      $('#before [data-message="2"] > div').click();
      seen.push(all('.lit').map(n => n.dataset.message).join());
      press('Escape');
      seen.push(all('.lit, .at').length);
      press('n');
      seen.push($('.at').closest('.run').className.includes('trained'));
      const first = +$('.at').dataset.token;
      press('ArrowRight');
      seen.push(+$('.at').dataset.token - first);
      press('j'); seen.push($('a[aria-current] b').textContent);
      press('j'); press('j'); seen.push(title());
      press('k'); seen.push(title());
      $('#search').value = 'RUN-2';
      $('#search').dispatchEvent(new Event('input'));
      seen.push($('#count').textContent, title());
      press('k'); seen.push(title());
      seen.push(all('.tok').map(t => t.textContent).join('').includes('<|im_start|>'))"""
    found = dom(tmp_path, drive(html, script))
    assert re.search('data-seen="(.*?)"', found)[1].split('|') == [
        'true', '1', 'true', '2,2', '0', 'true', '1', 'run-1', 'run-2', 'run-1', '1 of 3', 'run-2', 'run-2', 'true']


def test_every_token_is_there_once_and_readable_without_scripts(tok, tmp_path):
    t = trajectory(texts=('Is it warm? ' * 600, 'I look.', '-4 °C 🌨', 'No.'))
    [e] = encode(t, tok)
    html = view([e], tok, [t]).html
    opened = """
      all('#after details').forEach(d => d.open = true);
      setTimeout(() => {
        const numbers = all('#after .tok').map(t => +t.dataset.token);
        seen.push(numbers.length, numbers.every((v, k) => v === k));
        done();
      }, 300)"""
    assert re.search('data-seen="(.*?)"', dom(tmp_path, drive(html, opened)))[1] == f'{len(e)}|true'
    plain = dom(tmp_path, without_scripts(html))
    assert 'Without JavaScript' in plain and 'class="tok' not in plain
    assert 'No.</span><span class="run trained stop">&lt;|im_end|&gt;</span>' in plain

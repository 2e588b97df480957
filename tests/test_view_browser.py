"The static page in a real browser: hostile records run nothing, colours can be read, long records stay quick, and the page answers to mouse and keyboard."
import re
import time

import pytest

from actionstudio.assets import smollm2_tokenizer
from actionstudio.certify import Certificate
from actionstudio.encode import encode
from actionstudio.render import CHATML_TOOLS
from actionstudio.schema import Trajectory
from actionstudio.sheet import sheet
from actionstudio.view import bars, curve, page_of, table, view

pytestmark = pytest.mark.slow
OWNED = "document.title='owned';document.documentElement.setAttribute('data-owned','1');alert(1)"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
there = 'http://127.0.0.1:9'
ATTACKS = [f'<script>{OWNED}</script>', f'"><img src="{there}/leak" onerror="{OWNED}">', f"' onmouseover='{OWNED}' x='",
           f'</script><script>{OWNED}</script>', f'</textarea></pre></title></style><svg onload="{OWNED}"></svg>',
           f'[click](javascript:{OWNED})', f'<iframe srcdoc="<script>parent.{OWNED}</script>"></iframe>',
           f'<meta http-equiv=refresh content="0;url={there}/go">', f'<link rel=stylesheet href={there}/css>', f'<base href={there}/>',
           '<!-- <script>', ']]>', '${owned=1}', '{{ 7*7 }}', '\x1b[2J\x1b]0;owned\x07', 'user\u202etxt.exe\u2066', '\ufdd0<i>\ufdd1', '\u2028\u2029\x00', '&lt;script&gt;']
CONTRAST = """() => {  // The weakest contrast of a text with the ground that it stands on
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = c => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = c => [.2126, .7152, .0722].reduce((s, w, k) => { const x = c[k] / 255; return s + w * (x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4); }, 0);
  const ground = n => { for (; n; n = n.parentElement) { const c = rgba(getComputedStyle(n).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  const out = {};
  for (const n of document.querySelectorAll('body *')) {
    if (!n.offsetParent || ![...n.childNodes].some(t => t.nodeType === 3 && t.data.trim())) continue;
    const [a, b] = [light(rgba(getComputedStyle(n).color)), light(ground(n))].sort((x, y) => y - x);
    const key = n.className || n.tagName;
    out[key] = Math.min(out[key] ?? 99, (a + .05) / (b + .05));
  }
  return out;
}"""

PLACES = """() => [...document.querySelectorAll('.pane')].filter(n => n.offsetParent).map(n => { const r = n.getBoundingClientRect(); return [n.dataset.pane, Math.round(r.left), Math.round(r.top), Math.round(r.right), Math.round(r.bottom)]; })"""
PANES = ['raw', 'unified', 'after', 'rendered', 'tokens']
REACHED = """() => {  // What has the focus, and whether that is seen; null: nothing
  const n = document.activeElement;
  if (n === document.body) return null;
  document.reached = document.reached || new Set();
  document.reached.add(n);
  return [n.textContent.slice(0, 30) || n.getAttribute('aria-label'), parseFloat(getComputedStyle(n).outlineWidth)];
}"""
UNREACHED = """() => [...document.querySelectorAll('button:not(:disabled), select, input, a[href], summary, [tabindex="0"]')]
  .filter(n => n.checkVisibility() && !document.reached.has(n)).map(n => n.outerHTML.slice(0, 80))"""


def assert_side_by_side(page):
    "The five panes stand beside one another, in order, each with room for text, and nothing lies beyond the window."
    found = page.evaluate(PLACES)
    assert [name for name, *_ in found] == PANES
    assert all(a[3] <= b[1] + 1 and abs(a[2] - b[2]) < 2 and abs(a[4] - b[4]) < 2 for a, b in zip(found, found[1:])), found
    assert all(right - left >= 150 and bottom - top >= 200 for _, left, top, right, bottom in found), found
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')


def assert_stacked(page):
    "In a narrow window the panes stand below one another, and none is wider than the window."
    found = page.evaluate(PLACES)
    assert [name for name, *_ in found] == PANES
    assert all(a[4] <= b[2] + 1 for a, b in zip(found, found[1:])) and all(0 <= left and right <= 400 and right - left >= 300 for _, left, _, right, _ in found), found
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')


def assert_reached_by_tab(page):
    "Every control is reached by the Tab key, and the focus is seen on each."
    page.evaluate(REACHED)
    for _ in range(300):
        page.keyboard.press('Tab')
        at = page.evaluate(REACHED)
        if at is None: break
        assert at[1] >= 2, at
    assert not page.evaluate(UNREACHED)


@pytest.fixture(scope='module')
def tok():
    tok = smollm2_tokenizer()
    tok.chat_template = CHATML_TOOLS
    return tok


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


def hostile_page(tok):
    runs = [trajectory(f'{k}{a}', [a] * 4, a, {a: a}) for k, a in enumerate(ATTACKS)]
    sheets = [sheet(t, tok, encode(t, tok), Certificate(False, ATTACKS), raw={a: [a] for a in ATTACKS}, after=t, removed=ATTACKS[0]) for t in runs]
    return page_of(sheets, tok, ATTACKS[0]).html


@pytest.fixture
def shown(open_page, tmp_path):
    def show(html, **options):
        (tmp_path/'page.html').write_text(html, encoding='utf-8')
        page = open_page((tmp_path/'page.html').as_uri(), **options)
        page.wait_for_timeout(500)
        return page
    return show


def without_scripts(html): return re.sub(r"script-src 'sha256-[^']*'", "script-src 'none'", html)


def assert_calm(page, title=ATTACKS[0]):
    assert (page.title(), page.dialogs, page.asked, page.errors) == (title, [], [], [])
    found = page.evaluate("""() => [document.documentElement.hasAttribute('data-owned'), document.querySelectorAll('body :is(img, iframe, svg, base, link, meta, textarea, i)').length,
      document.querySelectorAll('script').length, [...document.querySelectorAll('body *')].filter(n => [...n.attributes].some(a => a.name.startsWith('on') || /^\\s*javascript:/i.test(a.value))).length]""")
    assert found == [False, 0, 2, 0]
    assert not re.search('[\x00\x07\x1b\u202e\u2028\u2029\u2066]', page.content())


@pytest.mark.parametrize('change, scripts', [(lambda html: html, True), (lambda html: POLICY.sub('', html), True), (without_scripts, False)],
                         ids=['as_made', 'escaping_alone', 'without_scripts'])
def test_hostile_records_run_nothing(tok, shown, change, scripts):
    page = shown(change(hostile_page(tok)))
    assert_calm(page)
    assert bool(page.locator('.tok').count()) == scripts  # The page itself did run


def test_hostile_records_stay_text_when_each_is_shown(tok, shown):
    page = shown(POLICY.sub('', hostile_page(tok)))
    for k in range(len(ATTACKS)):
        page.keyboard.press('j') if k else None
        for key in ('c', 'n', 'ArrowRight', 'ArrowDown', 'd', 'd'): page.keyboard.press(key)
        page.evaluate("() => { document.querySelectorAll('.label').forEach(n => n.click()); document.querySelectorAll('.tok').forEach(n => n.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))); }")
    assert_calm(page)
    assert '{{ 7*7 }}' in page.locator('#list').inner_text() and '&lt;script&gt;' in page.locator('.pane[data-pane=unified]').inner_text()


def test_policy_stops_what_escaping_let_through(tok, shown):
    t = trajectory()
    html = view(encode(t, tok), tok, [t], title='calm').html
    page = shown(html.replace('<main>', f'<main>{"".join(ATTACKS[:5])}'))
    assert (page.title(), page.dialogs, page.asked) == ('calm', [], [])


def test_pictures_hold_no_elements_of_records(shown):
    parts = [bars(dict.fromkeys(ATTACKS, 1), ATTACKS[0], ATTACKS[1]), curve([(0, 1), (1, 2)], *ATTACKS[:3]), table([{a: a for a in ATTACKS}], ATTACKS[0])]
    page = shown('<!doctype html><meta charset="utf-8"><title>calm</title><body>' + ''.join(parts))
    assert (page.title(), page.dialogs, page.asked) == ('calm', [], [])
    assert page.locator('script, img').count() == 0


def test_mouse_and_keyboard(tok, shown):
    runs = [trajectory(f'run-{k}') for k in range(3)]
    page = shown(page_of([sheet(t, tok, raw={"log": [m.to_dict() for m in t.conversation]}, after=t) for t in runs], tok).html)
    lit = lambda: sorted({(n.evaluate("n => n.closest('.pane').dataset.pane"), n.get_attribute('data-message')) for n in page.locator('.lit').all()})
    panes, press, title = ('after', 'raw', 'rendered', 'tokens', 'unified'), page.keyboard.press, lambda: page.locator('.head h2').inner_text()
    page.locator('.trained.stop .tok').first.click()
    assert 'stop · trained' in page.locator('.status').inner_text() and lit() == [(p, '1') for p in panes]
    page.locator('.pane[data-pane=unified] [data-message="2"] .label').click()
    assert lit() == [(p, '2') for p in panes]
    press('Escape')
    assert lit() == [] and page.locator('.at').count() == 0
    press('n')
    first = page.locator('.tok.at')
    assert 'trained' in first.evaluate("n => n.closest('.run').className")
    k = int(first.get_attribute('data-token'))
    press('ArrowRight')
    assert int(page.locator('.tok.at').get_attribute('data-token')) == k + 1
    press('ArrowDown')
    assert lit() == [(p, '2') for p in panes]
    press('2')
    assert not page.locator('.pane[data-pane=unified]').is_visible()
    press('2'); press('d')
    assert page.locator('.diff').is_visible() and 'no difference' in page.locator('.diff').inner_text()
    page.get_by_label('from').select_option('raw')
    assert page.locator('.diff .gone').count() and page.locator('.diff .new').count()
    press('Escape'); press('j'); assert page.locator('a[aria-current] b').inner_text() == 'run-1'
    press('j'); press('j'); assert title() == 'run-2'
    press('k'); assert title() == 'run-1'
    press('/'); page.keyboard.type('RUN-2')
    assert (page.locator('#count').inner_text(), title()) == ('1 of 3', 'run-2')
    press('Enter'); press('k'); assert title() == 'run-2' and not page.errors


def test_layout_wide_and_narrow_and_by_tab(tok, shown):
    runs = [trajectory(f'run-{k}') for k in range(2)]
    page = shown(page_of([sheet(t, tok, raw={"log": [m.to_dict() for m in t.conversation]}, after=t, removed='odd') for t in runs], tok).html)
    assert_side_by_side(page)
    assert page.locator('nav').bounding_box()['width'] + 2 < page.locator('#record').bounding_box()['x'] + 4
    page.keyboard.press('c')
    assert_reached_by_tab(page)
    page.set_viewport_size({'width': 400, 'height': 800})
    page.wait_for_timeout(300)
    assert_stacked(page)
    for key in ('n', 'ArrowRight', 'ArrowDown'): page.keyboard.press(key)
    box = page.locator('.pane[data-pane=unified] .lit').bounding_box()
    assert page.locator('.lit').count() == 5 and box['width'] > 250


def test_long_records_stay_quick_and_lose_no_token(tok, shown):
    t = trajectory('long', texts=('Is it warm? ' * 600, 'I look. ' * 4000, '-4 °C 🌨 ' * 1500, 'No.'))
    [e] = encode(t, tok)
    assert len(e) > 20_000
    page = shown(view([e], tok, [t]).html)
    assert page.locator('*').count() < 3000
    start = time.perf_counter()
    for key in ['n', *['ArrowRight'] * 20, *['ArrowDown'] * 3, 'n']: page.keyboard.press(key)
    assert (time.perf_counter() - start) / 25 < .25 and page.locator('*').count() < 6000
    page.wait_for_timeout(400)  # A choice is held in sight for some frames
    numbers = page.evaluate("""async () => {
      const pane = document.querySelector('.pane[data-pane=tokens] .body'), seen = new Set();
      for (let y = 0; ; y += pane.clientHeight / 2) {
        pane.scrollTop = y;
        await new Promise(r => requestAnimationFrame(() => setTimeout(r, 12)));
        pane.querySelectorAll('.tok').forEach(n => seen.add(+n.dataset.token));
        if (y > pane.scrollHeight) return seen.size;
      }
    }""")
    assert numbers == len(e)
    assert page.locator('*').count() < 6000


def test_a_chosen_token_is_in_sight(tok, shown):
    t = trajectory('long', texts=('{"type": "object", "properties": {"id": {"type": "string"}}} ' * 300, 'I look.', '{"id": 4} ' * 2000, 'No.'))
    page = shown(view(encode(t, tok), tok, [t]).html)
    for key in 'nnpn':  # Each time over thousands of tokens, of which none had its true height
        page.keyboard.press(key); page.wait_for_timeout(500)
        seen = page.evaluate("""() => ['tokens', 'rendered'].map(p => {
          const pane = document.querySelector(`.pane[data-pane=${p}] .body`).getBoundingClientRect(), at = document.querySelector(`.pane[data-pane=${p}] .at`).getBoundingClientRect();
          return at.top < pane.bottom && at.bottom > pane.top;
        })""")
        assert seen == [True, True], key


def test_readable_without_scripts(tok, shown):
    t = trajectory()
    page = shown(without_scripts(view(encode(t, tok), tok, [t]).html))
    assert 'Without JavaScript' in page.locator('#static').inner_text() and page.locator('.tok').count() == 0
    assert page.locator('.run.trained.stop').last.inner_text() == '<|im_end|>'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_colours_pass_wcag_aa(tok, shown, scheme):
    t = trajectory()
    rows = encode(t, tok, weights={'reasoning': .1, 'call.name': 2, 'markup': .5})
    page = shown(page_of([sheet(t, tok, rows, Certificate(False, ['conversation[1]: odd']), raw={"a": "Is it warm?"}, after=t, removed='odd')], tok).html, color_scheme=scheme)
    page.keyboard.press('c'); page.keyboard.press('n')
    found = page.evaluate(CONTRAST)
    page.keyboard.press('d')
    page.get_by_label('from').select_option('raw')
    found |= page.evaluate(CONTRAST)
    assert len(found) > 15 and min(found.values()) >= 4.5, sorted(found.items(), key=lambda x: x[1])[:5]

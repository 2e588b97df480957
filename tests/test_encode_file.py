"The same bytes from one process, several, and Ray; and the command line around them."
import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

RUN = {"unique_trajectory_id": "a", "task_instruction": "", "tools": [],
       "conversation": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
FILES = ('encoded.parquet', 'removed.jsonl', 'certificate.json')


def write(path, *records):
    path.write_text(''.join(json.dumps(r) + '\n' for r in records))
    return path


def many(n): return [RUN | {"unique_trajectory_id": str(k), "conversation": [{"role": "user", "content": f"Say {k}."}, {"role": "assistant", "content": "<|im_end|> no" if k % 50 == 7 else f"{k}!"}]} for k in range(n)]


@pytest.mark.slow
@pytest.mark.parametrize('engine', ['local', 'ray'])
def test_who_makes_the_parts_does_not_matter(engine, model, tmp_path):
    if engine == 'ray': pytest.importorskip('ray')
    from actionstudio.encode_file import encode_file
    data = write(tmp_path/'d.jsonl', *many(300))
    one, two = (encode_file(data, tmp_path/name, model, **how) for name, how in (('one', {}), ('two', {'engine': engine, 'workers': 2})))
    assert one == two and one['removed'] == {'stop_inside_turn': 6}
    for f in FILES: assert (tmp_path/'one'/f).read_bytes() == (tmp_path/'two'/f).read_bytes()


@pytest.mark.slow
def test_killed_and_the_same(model, tmp_path):
    from actionstudio.encode_file import encode_file
    data, cache = write(tmp_path/'d.jsonl', *many(4000)), tmp_path/'.killed.cache'
    args = [sys.executable, '-m', 'actionstudio.cli', 'encode', str(data), '--tokenizer', str(model), '--allow-refused', '-o', str(tmp_path/'killed')]
    p = subprocess.Popen(args, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not (cache.is_dir() and len(list(cache.glob('[0-9a-f]*'))) > 3): assert p.poll() is None; time.sleep(0.02)
    p.send_signal(signal.SIGKILL); p.wait()
    kept = {f.name: f.stat().st_mtime_ns for f in cache.glob('[0-9a-f]*')}
    assert not (tmp_path/'killed').exists()
    assert subprocess.run(args, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    assert kept.items() <= {f.name: f.stat().st_mtime_ns for f in cache.iterdir()}.items()
    encode_file(data, tmp_path/'whole', model)
    for f in FILES: assert (tmp_path/'killed'/f).read_bytes() == (tmp_path/'whole'/f).read_bytes()


def test_the_command_line(actionstudio, model, tmp_path):
    (tmp_path/'data').mkdir()
    data = write(tmp_path/'data'/'data.jsonl', *many(10))
    code, out, err = actionstudio('encode', tmp_path/'data', '--tokenizer', model, '--history', 'as_served', '--weights', '{"markup": 0}', '-o', tmp_path/'e')
    assert code == 1 and '1 samples were removed' in err and 'last_only' in out and 'template: as it is' in out
    assert json.loads((tmp_path/'e/certificate.json').read_text())['settings']['weights'] == {'markup': 0}
    for args, words in ((('--options', '{"a":'), 'options: found'), (('--length', 'cut'), 'expected drop, window, elide'), (('--engine', 'dask'), 'expected local or ray'),
                        (('--history', 'keeep'), 'expected as_served, last_only or keep'), (('--may-drop', 'thoughts'), 'expected reasoning or content'),
                        (('--options', '{"enable_thinkin": 1}'), 'the template reads no such argument')):
        code, _, err = actionstudio('encode', data, '--tokenizer', model, *args, '-o', tmp_path/'x')
        assert code == 2 and err.count('\n') == 1 and words in err


def test_a_date_that_a_template_prints(model, tmp_path, monkeypatch):
    "On two days: the same rows where the day is given or the folder was begun, and other rows elsewhere."
    import datetime

    from transformers.utils import chat_template_utils

    from actionstudio import encode_file, template
    from actionstudio.dataset import load_encoded
    from actionstudio.render import CHATML_TOOLS

    def today(*day):
        class Frozen(datetime.datetime):
            @classmethod
            def now(cls, tz=None): return cls(*day)
        for module in (template, chat_template_utils): monkeypatch.setattr(module, 'datetime', Frozen)

    (tmp_path/'t.jinja').write_text(CHATML_TOOLS.replace('{{ system }}', '{{ system }} It is {{ strftime_now("%d %B %Y") }}.'))
    data = write(tmp_path/'d.jsonl', RUN | {"task_instruction": "Be brief."}, *(r | {"task_instruction": "Be brief."} for r in many(300)))
    go = lambda name, **how: encode_file.encode_file(data, tmp_path/name, model, tmp_path/'t.jinja', **how)
    same = lambda a, b: all((tmp_path/a/f).read_bytes() == (tmp_path/b/f).read_bytes() for f in FILES)
    stops = lambda stream, label: (x if k < 200 else 1/0 for k, x in enumerate(stream))

    today(2026, 7, 1)
    first = go('open')
    go('pinned', options={'date': '2026-07-01'})
    assert 'date (2026-07-01' in first['template'] and same('open', 'pinned')
    assert first['removed'] == {'stop_inside_turn': 6} and all('It is 01 July 2026.' in r.text for r in load_encoded(tmp_path/'open/encoded.parquet'))
    with pytest.raises(ZeroDivisionError): go('stopped', progress=stops)
    kept = set((tmp_path/'.stopped.cache').iterdir())
    today(2026, 7, 2)
    assert go('open') == first
    go('again', options={'date': '2026-07-01'}); go('stopped'); go('later')
    assert kept and kept <= set((tmp_path/'.stopped.cache').iterdir())
    assert same('again', 'pinned') and same('stopped', 'pinned') and not same('later', 'pinned')
    assert not list(tmp_path.glob('.*.day.json'))
    assert json.loads((tmp_path/'later/certificate.json').read_text())['settings']['template_options'] == {'date': '2026-07-02'}
    with pytest.raises(Exception, match='options: date: found "soon", expected a day such as 2026-07-01'): go('wrong', options={'date': 'soon'})

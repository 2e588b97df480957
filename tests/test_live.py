"A real training run is followed by the verifier while it trains: what the ring says is what training says."
import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from actionstudio.config import Run, to_yaml
from actionstudio.encode_file import encode_file
from actionstudio.pairs import make_pairs
from actionstudio.ring import read_ring
from actionstudio.schema import Trajectory
from actionstudio.store import write
from actionstudio.verifier import Verifier

pytestmark = pytest.mark.slow


def asks(k):
    what, place = ('weather', 'news')[k % 2], ('Oslo', 'Rome', 'Lima')[k % 3]
    tool = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"unique_trajectory_id": f'run-{k}', "task_instruction": "", "meta": {"source": what}, "tools": [{"type": "function", "function": {"name": n, "description": n, "parameters": tool}} for n in ('weather', 'news')],
            "conversation": [{"role": "user", "content": f'Tell me the {what} in {place}.'}, {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": {"name": what, "arguments": {"city": place}}}]}]}


@pytest.fixture
def made(weighted, tmp_path):
    write(tmp_path/'data.jsonl', [asks(k) for k in range(24)])
    encode_file(tmp_path/'data.jsonl', tmp_path/'run'/'encoded', weighted)
    write(tmp_path/'pairs.jsonl', [p.to_dict() for k in range(24) for p in make_pairs(Trajectory.from_dict(asks(k)), ['wrong_tool'])])
    def run(objective, **more):
        data = tmp_path/'pairs.jsonl' if objective == 'dpo' else tmp_path/'run'/'encoded'
        return Run(**{'model': str(weighted), 'data': str(data), 'out': str(tmp_path/'run'/'train'), 'objective': objective, 'regime': 'full', 'dtype': 'float32', 'row_tokens': 512, 'lr': 1e-3, 'epochs': 30., 'save_every': 10 ** 6} | more)
    return run


def told(run):
    "Step → loss, as training reports it."
    return {x['step']: x['loss'] for x in map(json.loads, open(f'{run.out}/metrics.jsonl'))}


@pytest.mark.parametrize('objective', ['sft', 'dpo'])
def test_a_run_is_followed_while_it_trains(made, model, tmp_path, objective):
    run = made(objective)
    (tmp_path/'run.yaml').write_text(to_yaml(run))
    v, seen, shown = Verifier(tmp_path/'run', model), {}, {}
    p = subprocess.Popen([sys.executable, '-m', 'actionstudio.cli', 'train', str(tmp_path/'run.yaml')], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while p.poll() is None:
        time.sleep(.1)
        if not v.state()['follows']: continue
        live = v.do('live').live
        if p.poll() is None and live['step']: seen[live['step']] = live
        if len(seen) == 3 and not shown: shown = v.do('segment', row=0, place=0).record()['records'][0]
    assert p.returncode == 0, p.stdout.read()[-2000:]
    assert len(seen) > 3 and max(seen) > min(seen) + 3, seen.keys()
    losses = told(run)
    of = 'preference' if objective == 'dpo' else 'loss'
    for step, live in seen.items():
        assert live[of] == pytest.approx(losses[step], rel=1e-4)
        assert live['padded'] == live['real'] and 0 < live['trained'] < live['real'] and set(live['sources']) <= {'weather', 'news'} and 'call.name' in live['fields']
    assert min(len(s) for live in seen.values() for s in live['segments']) > 1
    assert sum(x is not None for x in shown['leaves'][0]['losses']) == shown['leaves'][0]['trained'] > 5
    assert read_ring(v.ring)[-1].share < .02
    if objective == 'dpo':
        assert shown['id'].endswith(' chosen')
        assert all(set(live['sides']) == {'chosen', 'rejected'} for live in seen.values())


def test_the_fused_head_of_a_gpu_hands_its_losses_over(made, tmp_path, monkeypatch):
    from actionstudio.sft import AgentSFTTrainer, train_sft
    plain, fused = (made('sft', out=str(tmp_path/name), epochs=4.) for name in ('plain', 'fused'))
    train_sft(plain)
    monkeypatch.setattr(AgentSFTTrainer, 'fused', lambda self, row: True)
    train_sft(fused)
    a, b = ({s.step: s for s in read_ring(tmp_path/name/'live')} for name in ('plain', 'fused'))
    both = sorted(a.keys() & b.keys())
    assert both and told(plain) == pytest.approx(told(fused), rel=1e-3)
    for k in both:
        assert [[p.id for p in row] for row in a[k].rows] == [[p.id for p in row] for row in b[k].rows]
        assert [v for row in b[k].rows for p in row for v in p.losses if v is not None] == pytest.approx([v for row in a[k].rows for p in row for v in p.losses if v is not None], rel=1e-2, abs=1e-3)

"The demo, whole, and killed in every stage."
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

SMALL = ('--budget', '1200', '--held-out', '0.02')
COUNTS = ('records_in', 'records_out', 'removed', 'rejected', 'trainable', 'held_out', 'certified', 'encoded_tokens', 'tokens', 'trained_tokens', 'loss_first', 'loss_last',
          'f1_before', 'f1_after', 'argument_match_before', 'argument_match_after', 'irrelevance_before', 'irrelevance_after')


def start(out):
    return subprocess.Popen([sys.executable, '-u', '-m', 'actionstudio.cli', 'demo', '--out', str(out), *SMALL], cwd=ROOT, env=os.environ | {'PYTHONPATH': str(ROOT)},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('demo')/'out'
    p = start(out)
    log = p.communicate()[0]
    assert p.returncode == 0, log[-2000:]
    return out


@pytest.mark.slow
def test_every_record_is_accounted_for(whole):
    r = json.loads((whole/'report.json').read_text())
    assert r['records_in'] == r['records_out'] + sum(r['removed'].values()) + sum(r['rejected'].values()) == 1498
    assert r['certified'] == r['trainable'] and r['trained_tokens'] >= 1200
    assert (whole/'report.html').is_file() and (whole/'launch/slurm/job.sbatch').is_file()


@pytest.mark.slow
def test_the_merged_model_says_what_the_adapter_says(whole):
    from actionstudio.evaluate_file import evaluate_file
    from actionstudio.store import load_json
    data, template = whole/'split/heldout.jsonl', whole/'assets/chat_template.jinja'
    evaluate_file(whole/'assets/model', data, whole.parent/'apart', adapter=whole/'train/adapter', chat_template=template, dtype='float32')
    evaluate_file(whole/'merged', data, whole.parent/'merged', dtype='float32')
    apart, merged = ([(r['id'], r['predicted']) for r in load_json(whole.parent/name/'scores.json')['rows']] for name in ('apart', 'merged'))
    assert apart == merged


@pytest.mark.slow
def test_a_server_says_what_the_demo_trained(whole, tmp_path):
    from test_serve import served

    from actionstudio.ask import Endpoint
    from actionstudio.serve import bundle, parity
    pytest.importorskip('fastapi'); pytest.importorskip('uvicorn')
    bundle(whole/'merged', tmp_path/'bundle', whole/'split/heldout.jsonl', prompts=4, max_new_tokens=32)
    with served(tmp_path/'bundle', tmp_path/'log') as url:
        found = parity(tmp_path/'bundle', Endpoint(base_url=url, timeout=300))
    assert found.ok and found.prompts == 4, found


@pytest.mark.slow
def test_killed_in_each_stage_it_goes_on_and_counts_the_same(whole, tmp_path):
    out, killed = tmp_path/'killed', []
    for stage in range(1, 13):
        p = start(out)
        for line in p.stdout:
            if line.startswith(f'[{stage}/'): break
        else: pytest.fail(f'stage {stage} was not reached')
        time.sleep(0.2 if stage not in (7, 8, 10) else 12)  # Generation and training: in the middle of their work
        p.send_signal(signal.SIGKILL)
        p.wait()
        killed.append(stage)
    p = start(out)
    log = p.communicate()[0]
    assert p.returncode == 0, log[-2000:]
    a, b = (json.loads((f/'report.json').read_text()) for f in (whole, out))
    assert {k: a[k] for k in COUNTS} == {k: b[k] for k in COUNTS}
    assert killed == list(range(1, 13))

"""What the generated scripts do before a run begins, and after a process of it died: real launchers, real processes, over gloo on CPUs."""
import hashlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import LAUNCHED


@pytest.fixture(scope='module')
def two_nodes(work, launch_files):
    "Run node.sh of both nodes on this machine, and what happens `during` it: returns their exit codes and what they said."
    def run(name, during=lambda nodes: None, target={}, **keys):
        job = work/f'{name}-job'
        if not job.exists(): launch_files(name, target, **(dict(save_every=4) | keys))
        nodes = [subprocess.Popen(['bash', job/'node.sh', '127.0.0.1'], cwd=work, env=LAUNCHED | {'SLURM_NODEID': str(k), 'SLURM_JOB_ID': '7', 'SLURMD_NODENAME': f'node-{k}'}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for k in (0, 1)]
        try: during(nodes); said = [p.communicate(timeout=200)[0] for p in nodes]
        finally:
            for p in nodes: p.kill()
        return [p.returncode for p in nodes], said
    return run


@pytest.mark.slow
def test_a_dry_run_comes_first_and_once(work, two_nodes):
    "Two steps and a checkpoint in both processes, of which nothing is left; then the run. The second start begins at once."
    codes, said = two_nodes('first')
    assert codes == [0, 0], said
    assert ''.join(said).count('dry run: 2 steps on 2 processes') == 1 and 'written and removed' in ''.join(said), said  # On the node of rank 0, which may be either
    out = work/'first'
    assert not (out/'dry_run').exists() and (out/'dry_run_2.yaml').read_text() == (work/'first-job/run.yaml').read_text()
    steps = [json.loads(x)['step'] for x in (out/'metrics.jsonl').read_text().splitlines()]
    assert steps == list(range(1, steps[-1] + 1)) and json.loads((out/'report.json').read_text())['steps'] == steps[-1] > 2
    codes, said = two_nodes('first')
    assert codes == [0, 0] and 'dry run' not in ''.join(said), said


def nan_model(work):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(work/'model')
    with torch.no_grad(): model.lm_head.weight[3] = float('nan')
    model.save_pretrained(work/'nan')
    AutoTokenizer.from_pretrained(work/'model').save_pretrained(work/'nan')
    return str(work/'nan')


@pytest.mark.slow
def test_a_dry_run_that_fails_says_why_in_one_line(work, two_nodes):
    "Weights that are no numbers pass every look at files; the first step finds them, on both nodes the run ends with exit code 2, and no run has begun."
    codes, said = two_nodes('bad', model=nan_model(work))
    assert codes == [2, 2], said
    lines = [x for x in '\n'.join(said).splitlines() if x.startswith('preflight on ')]
    assert len(lines) == 2 and all(re.search('the dry run failed: (rank 1: )?step 1: ', x) and 'expected a finite number' in x for x in lines), said
    assert not (work/'bad/dry_run').exists() and not (work/'bad/made_by.json').exists() and not list((work/'bad').glob('dry_run_*'))


@pytest.mark.slow
def test_a_template_that_is_not_the_certificates(work, two_nodes):
    "One line on each node, before any process starts."
    import shutil
    shutil.copytree(work/'rows', work/'changed')
    template = (work/'changed/chat_template.jinja').read_text()
    (work/'changed/chat_template.jinja').write_text(template.replace('assistant', 'Assistant', 1))
    codes, said = two_nodes('template', data=str(work/'changed'))
    assert codes == [2, 2] and all(x.startswith('preflight on node-') and 'made these rows, but' in x and len(x.splitlines()) == 1 for x in said), said
    assert not (work/'template/logs').exists()


def weights(folder): return hashlib.sha256((folder/'model/model.safetensors').read_bytes()).hexdigest()


def worker(path, rank):
    "The process id of one rank of a run."
    for p in Path('/proc').glob('[0-9]*'):
        try: words, env = (p/'cmdline').read_bytes(), (p/'environ').read_bytes()
        except OSError: continue
        if str(path).encode() in words and b'torchrun' not in words and f'\0RANK={rank}\0'.encode() in b'\0' + env: return int(p.name)
    raise AssertionError(f'no process of rank {rank}')


@pytest.mark.slow
@pytest.mark.parametrize('sharding', ['replica', 'fsdp'])
def test_torchrun_starts_a_killed_worker_again(work, two_nodes, sharding):
    "One of two processes is killed in the middle; the torchruns of both nodes start both again, from the last checkpoint, and the weights are those of a run that nobody touched."
    killed, keys = work/f'killed-{sharding}', dict(epochs=12.0, sharding=sharding)
    def kill(nodes):
        end = time.time() + 120
        while not (killed/'metrics.jsonl').exists() or len((killed/'metrics.jsonl').read_text().splitlines()) < 10:
            assert time.time() < end and all(p.poll() is None for p in nodes), [p.communicate()[0] for p in nodes if p.poll() is not None]
            time.sleep(.02)
        os.kill(worker(f'{killed}-job/run.yaml', 1), signal.SIGKILL)
    for name, during in ((f'whole-{sharding}', lambda nodes: None), (killed.name, kill)):
        codes, said = two_nodes(name, during, dict(max_restarts=1, trial_steps=0), **keys)
        assert codes == [0, 0], said
    steps = [json.loads(x)['step'] for x in (killed/'metrics.jsonl').read_text().splitlines()]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] > 20
    assert len(list((killed/'logs').rglob('attempt_1'))) == 1  # Only the torchrun whose worker died counts a restart
    assert weights(killed) == weights(work/f'whole-{sharding}')

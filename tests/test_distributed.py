"Several processes train as one does: the same loss and the same gradient norm in every step, whatever the engine."
import json
import socket
import subprocess
import sys

import pytest
from conftest import ROOT

from actionstudio.config import Run, to_yaml


@pytest.fixture(scope='module')
def folder(weighted, tmp_path_factory):
    "Two models with weights, rows and pairs, whose lengths and numbers of trained tokens differ widely."
    from actionstudio.encode_file import encode_file
    from actionstudio.store import write
    folder = tmp_path_factory.mktemp('several')
    (folder/'model').symlink_to(weighted)
    say = lambda k, end: {"role": "assistant", "content": "word " * (k * k % 37) + end}
    ask = lambda k: {"unique_trajectory_id": str(k), "task_instruction": "", "tools": [], "conversation": [{"role": "user", "content": f"Say {k}. " + "please " * (k * 5 % 11)}]}
    runs = [ask(k) | {"conversation": ask(k)["conversation"] + [say(k, str(k))]} for k in range(37)]
    write(folder/'d.jsonl', runs)
    encode_file(folder/'d.jsonl', folder/'rows', weighted)
    write(folder/'pairs.jsonl', [ask(k) | {"chosen": [say(k, 'yes')], "rejected": [say(k + 3, 'no')]} for k in range(23)])
    return folder


def run_file(folder, name, **keys):
    how = dict(model=str(folder/'model'), out=str(folder/name), dtype='float32', row_tokens=128, lr=1e-3, devices=4, epochs=1.0, save_every=1000, sharding='replica')
    how['data'] = str(folder/'pairs.jsonl' if keys.get('objective') == 'dpo' else folder/'rows')
    (folder/f'{name}.yaml').write_text(to_yaml(Run(**(how | keys))))
    return str(folder/f'{name}.yaml')


def start(folder, jobs, timeout=600):
    (folder/'jobs.json').write_text(json.dumps(jobs))
    done = subprocess.run([sys.executable, ROOT/'tests/nursery.py', folder/'jobs.json'], cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    results = [json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"codes"')]
    assert len(results) == len(jobs), done.stderr[-3000:]
    return results


def said(folder, name, ranks=4):
    logs = [p.read_text()[-1500:] for p in sorted(folder.glob(f'{name}.yaml.*.log'))[:ranks]]
    return '\n'.join(f'--- rank {k}\n{x}' for k, x in enumerate(logs))


def steps(folder, name): return [(x['loss'], x['grad_norm']) for x in map(json.loads, (folder/name/'metrics.jsonl').read_text().splitlines())]


def weights(folder, name):
    from safetensors.torch import load_file
    [file] = [f for place in ('model/model', 'adapter/adapter_model') if (f := folder/name/f'{place}.safetensors').is_file()]
    return load_file(file)


def same(folder, name, one, tolerance=1e-5):
    "Loss and norm of each step, and the weights at the end."
    import torch
    a, b = steps(folder, name), steps(folder, one)
    assert len(a) == len(b) > 3
    for k, (x, y) in enumerate(zip(a, b), 1): assert x == pytest.approx(y, rel=tolerance), f'step {k} of {name}'
    a, b = weights(folder, name), weights(folder, one)
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-4, atol=1e-6, msg=lambda why: f'{k} of {name}: {why}')


ENGINES = [('replica', 2, 2), ('replica', 4, 4), ('fsdp', 2, 2), ('fsdp', 4, 4), ('hsdp', 4, 2), ('zero1', 2, 2), ('zero2', 2, 2), ('zero2', 4, 4), ('zero3', 2, 2), ('zero3', 4, 4)]
MOVED = [('fsdp', 2, 2, 'offload'), ('hsdp', 4, 2, 'offload'), ('zero1', 2, 2, 'offload'), ('zero2', 2, 2, 'offload'), ('zero3', 2, 2, 'offload'), ('zero3', 4, 2, 'node_copy'), ('zero3', 4, 2, 'node_copy', 'offload')]
SMALL = [('replica', 2, 2), ('fsdp', 2, 2), ('zero3', 2, 2)]


def matrix(folder, engines, kinds, prefix='', **more):
    jobs, names = [], []
    for objective, regime in kinds:
        keys = dict(objective=objective, regime=regime) | more
        one = f'{prefix}one-{objective}-{regime}'
        jobs.append({'run': run_file(folder, one, **keys), 'world': 1})
        names.append((one, None))
        for sharding, world, local, *words in engines:
            names.append((prefix + '-'.join((sharding, str(world), *words, objective, regime)), one))
            jobs.append({'run': run_file(folder, names[-1][0], sharding=sharding, **dict.fromkeys(words, True), **keys), 'world': world, 'local': local})
    done = start(folder, jobs, 60 * len(jobs))
    failed = {name: f"{d['codes']}\n{said(folder, name)}" for (name, _), d in zip(names, done) if any(d['codes'])}
    assert not failed, '\n'.join(f'{k}: {v}' for k, v in failed.items())
    for name, one in names:
        if one: same(folder, name, one)


def test_two_processes_are_one(folder): matrix(folder, SMALL, [('sft', 'full')])


@pytest.mark.slow
@pytest.mark.parametrize('regime', ['full', 'lora'])
@pytest.mark.parametrize('objective', ['sft', 'dpo'])
def test_every_engine_is_one_process(folder, objective, regime): matrix(folder, ENGINES, [(objective, regime)])


@pytest.mark.slow
@pytest.mark.parametrize('regime', ['full', 'lora'])
@pytest.mark.parametrize('objective', ['sft', 'dpo'])
def test_what_is_split_lies_elsewhere_too(folder, objective, regime):
    "States and weights in CPU memory, and a second copy of the weights in each of two nodes."
    matrix(folder, MOVED, [(objective, regime)])


@pytest.mark.slow
@pytest.mark.parametrize('regime', ['full', 'lora'])
def test_a_mixture_of_experts_is_one_process(folder, regime):
    "The rows of two processes choose different experts; DeepSpeed gathers the block of them as a whole, also from the copy in a node."
    import torch
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM
    if not (folder/'mixture').exists():
        torch.manual_seed(0)
        tok = AutoTokenizer.from_pretrained(folder/'model')
        MixtralForCausalLM(MixtralConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, vocab_size=len(tok))).save_pretrained(folder/'mixture')
        tok.save_pretrained(folder/'mixture')
    matrix(folder, [('replica', 2, 2), ('fsdp', 2, 2), ('zero3', 2, 2), ('zero3', 4, 2, 'node_copy')], [('sft', regime)], 'mixture-', model=str(folder/'mixture'))
    told = json.loads((folder/f'mixture-zero3-4-node_copy-sft-{regime}/engine.json').read_text())['deepspeed']['zero_optimization']
    assert (told['leaf_module'], told['zero_hpz_partition_size']) == ({'classes': ['MixtralSparseMoeBlock']}, 2)


def test_a_run_of_four_goes_on_with_two(folder):
    "It stops in the middle on four processes, and ends on two: losses, norms and weights are those of one process that nobody stopped."
    keys = dict(regime='full', devices=None, save_every=2, epochs=2.0)
    jobs = [{'run': run_file(folder, 'alone', regime='full', epochs=2.0), 'world': 1}, {'run': run_file(folder, 'moved', **keys), 'world': 4, 'stop': 5}, {'run': run_file(folder, 'moved', **keys), 'world': 2}]
    whole, killed, rest = start(folder, jobs)
    assert whole['codes'] == [0] and 7 in killed['codes'] and rest['codes'] == [0, 0], said(folder, 'moved')
    same(folder, 'moved', 'alone')


@pytest.mark.slow
@pytest.mark.parametrize('regime', ['full', 'lora'])
def test_every_engine_goes_on_with_fewer(folder, regime):
    "From four processes on two; DeepSpeed's checkpoints belong to a number of processes, and it says so."
    names = {f'{sharding}-moved-{regime}': sharding for sharding in ('replica', 'fsdp', 'fsdp-offload', 'zero2', 'zero3', 'zero3-offload')}
    one = f'alone-{regime}'
    jobs = [{'run': run_file(folder, one, regime=regime, epochs=2.0), 'world': 1}]
    for name, how in names.items():
        sharding, *words = how.split('-')
        jobs += [{'run': run_file(folder, name, sharding=sharding, regime=regime, epochs=2.0, save_every=2, **dict.fromkeys(words, True)), 'world': 4, 'stop': 5}, {'run': str(folder/f'{name}.yaml'), 'world': 2}]
    done = start(folder, jobs)
    for k, (name, sharding) in enumerate(names.items()):
        stopped, rest = done[1 + 2 * k:3 + 2 * k]
        assert 7 in stopped['codes'], said(folder, name)
        if sharding.startswith('zero'): assert all(rest['codes']) and 'expected 4 processes' in said(folder, name), said(folder, name); continue
        assert rest['codes'] == [0, 0], said(folder, name)
        same(folder, name, one)


def test_a_rank_that_hangs_is_named(folder):
    "The first process stops in the middle of a step; both end within the time-out, and both logs name it."
    job = {'run': run_file(folder, 'hangs', hang_seconds=4, epochs=2.0), 'world': 2, 'hang': 3, 'gently': True}
    done = start(folder, [job], 120)[0]
    logs = ''.join((folder/f'hangs.yaml.{k}.log').read_text() for k in (0, 1))
    assert 75 in done['codes'] and done['seconds'] < 60, logs
    assert 'rank 0 on ' in logs and 'hangs: last step 3' in logs and 'rank 1 on ' not in logs, logs


def test_a_rank_that_is_slow_is_named(folder):
    "One of three processes takes half a second more for each pass: every log names it, its host and its last step, in less time than the time-out, and nobody else; the run goes on to its end."
    import re
    done = start(folder, [{'run': run_file(folder, 'slow', hang_seconds=6, epochs=4.0, devices=None, save_every=1000), 'world': 3, 'slow': {'ranks': [2], 'seconds': .5}}], 120)[0]
    logs = [(folder/f'slow.yaml.{k}.log').read_text() for k in range(3)]
    assert done['codes'] == [0, 0, 0], said(folder, 'slow', 3)
    found = [re.findall(r'rank (\d+) on (\S+) is slow, .* a pass .*: last step (\d+)', log) for log in logs]
    assert all(len(f) == 1 and f[0][0] == '2' and f[0][1] == socket.gethostname() and int(f[0][2]) * .5 < 6 for f in found), found

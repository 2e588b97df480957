"A run that is killed, or told to stop, at random steps, and started again, is the run that nobody stopped: every loss, to the last bit."
import json
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip('torch')

# One process imports the libraries, and makes a child for each start of a run
KILLS = r"""
import json, os, random, signal, sys, time
from pathlib import Path
import torch; torch.set_num_threads(1)
from actionstudio.checkpoint import TERMINATED, last_checkpoint
from actionstudio.config import Run
from actionstudio.dpo import train_dpo
from actionstudio.encode_file import encode_file
from actionstudio.sft import train_sft
from transformers import AutoConfig, AutoModelForCausalLM

model, here, seed, which = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
rng = random.Random(seed)
torch.manual_seed(0)
AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
turn = lambda text: [{"role": "assistant", "content": text}]
runs = [{"unique_trajectory_id": str(k), "task_instruction": "", "tools": [], "conversation": [{"role": "user", "content": f"Say {k}."}]} for k in range(24)]
(here/'sft.jsonl').write_text(''.join(json.dumps(r | {"conversation": r["conversation"] + turn("word " * (1 + k % 7) + str(k))}) + '\n' for k, r in enumerate(runs)))
(here/'dpo.jsonl').write_text(''.join(json.dumps(r | {"chosen": turn(f"{k}!"), "rejected": turn(f"Why {k}?")}) + '\n' for k, r in enumerate(runs)))
encode_file(here/'sft.jsonl', here/'rows', model)

def child(run):
    if pid := os.fork(): return pid
    try: (train_sft if run.objective == 'sft' else train_dpo)(run); code = 0
    except SystemExit as e: code = e.code
    except BaseException: code = 1; __import__('traceback').print_exc()
    sys.stderr.flush(); os._exit(code)

def number(run): return (Path(run.out)/'metrics.jsonl').stat().st_ino if (Path(run.out)/'metrics.jsonl').exists() else 0

def lines(run):
    at = Path(run.out)/'metrics.jsonl'
    return [json.loads(x) for x in at.read_text().splitlines() if x.endswith('}')] if at.exists() else []

def end(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def interrupted(run, steps):
    "Killed, then told to stop, each at a random moment"
    ends, now = [], 0
    for sign in (signal.SIGKILL, signal.SIGTERM):
        before, at = number(run), rng.randrange(now + 1, steps - 2)
        pid = child(run)
        while number(run) == before or (lines(run) or [{'step': 0}])[-1]['step'] < at:  # A start writes the file of lines anew
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), 'ended by itself'
            time.sleep(.002)
        time.sleep(rng.random() * .03)
        os.kill(pid, sign)
        ends.append(end(pid))
        now = int(last_checkpoint(Path(run.out)/'checkpoints').name.split('-')[1]) if last_checkpoint(Path(run.out)/'checkpoints') else 0
    return ends + [end(child(run))]

for objective in ('sft', 'dpo'):
    for regime in ('full', 'lora', 'qlora'):
        name = f'{objective}_{regime}'
        if name not in which: continue
        more = {} if regime == 'full' else {'lora_r': 4, 'lora_alpha': 8}
        def run(out, **how): return Run(model=str(model), data=str(here/('rows' if objective == 'sft' else 'dpo.jsonl')), out=str(here/out), objective=objective, regime=regime, dtype='float32',
                                        row_tokens=96, grad_accum=2, lr=1e-3, epochs=2.0, save_every=3, **more, **how)
        assert end(child(run(name))) == 0, name
        whole = lines(run(name))
        ends = interrupted(run(name + '_again'), len(whole))
        assert ends == [-signal.SIGKILL, TERMINATED, 0], (name, ends)
        for key in ('step', 'loss', 'grad_norm', 'lr', 'trained_tokens'): assert [x[key] for x in whole] == [x[key] for x in lines(run(name + '_again'))], (name, key)
        folder = 'model' if regime == 'full' else 'adapter'
        files = [(here/out/folder/('model.safetensors' if regime == 'full' else 'adapter_model.safetensors')).read_bytes() for out in (name, name + '_again')]
        assert files[0] == files[1], name
        print(json.dumps({'name': name, 'steps': len(whole)}))
"""


EVERY = [f'{o}_{r}' for o in ('sft', 'dpo') for r in ('full', 'lora', 'qlora')]


@pytest.mark.parametrize('seed,which', [(1, ['sft_full', 'dpo_qlora']), *(pytest.param(k, EVERY, marks=pytest.mark.slow) for k in (2, 3))])
def test_killed_at_random_steps_is_the_same_run(model, tmp_path, seed, which):
    import shutil
    shutil.copytree(model, tmp_path/'model')
    done = subprocess.run([sys.executable, '-c', KILLS, tmp_path/'model', tmp_path, str(seed), *which], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"name"')]
    assert [x['name'] for x in found] == which and all(x['steps'] > 5 for x in found), done.stdout

"A run under each launcher, as a user types it: one process speaks, and all of them train one model."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LAUNCHED, free_port

from actionstudio.config import Run, to_yaml

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


@pytest.fixture(scope='module')
def held(work):
    "Rows that are not trained."
    from actionstudio.encode_file import encode_file
    from actionstudio.store import write
    write(work/'held.jsonl', [{"unique_trajectory_id": f'h{k}', "task_instruction": "", "tools": [], "conversation": [{"role": "user", "content": f"Say {k}."}, {"role": "assistant", "content": f"word {k}"}]} for k in range(100, 106)])
    encode_file(work/'held.jsonl', work/'held', work/'model')
    return str(work/'held')


def start(work, name, *launcher, **keys):
    run = Run(**(dict(model=str(work/'model'), data=str(work/'rows'), out=str(work/name), regime='full', dtype='float32', row_tokens=64, lr=1e-3, save_every=5, devices=2) | keys))
    (work/f'{name}.yaml').write_text(to_yaml(run))
    return subprocess.run([BIN/launcher[0], *launcher[1:], 'actionstudio.cli', 'train', work/f'{name}.yaml'], cwd=work, env=LAUNCHED, capture_output=True, text=True, timeout=280)


def lines(file): return [json.loads(x) for x in file.read_text().splitlines()]


def torchrun(): return 'torchrun', '--nproc-per-node', '2', '--master-port', str(free_port()), '-m'


def test_torchrun_and_deepspeed(work, held):
    "The plan and the report stand once in what both ranks print; the held-out loss is measured once a step; both launchers lead to the same losses."
    deepspeed = 'deepspeed', '--num_gpus', '2', '--master_port', str(free_port()), '--module'
    for name, launcher in (('torchrun', torchrun()), ('deepspeed', deepspeed)):
        done = start(work, name, *launcher, heldout=held)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [(done.stdout + done.stderr).count(x) for x in ('attention: ', 'plan: ', 'predicted: ', 'train → ')] == [1, 1, 1, 1], done.stdout + done.stderr
        steps = [x['step'] for x in lines(work/name/'metrics.jsonl')]
        assert [x['step'] for x in lines(work/name/'heldout.jsonl')] == [0, *(k for k in steps if k % 5 == 0 or k == steps[-1])] and len(steps) > 10
    assert json.loads((work/'torchrun/made_by.json').read_text())['devices'] == 2
    a, b = ([(x['loss'], x['grad_norm']) for x in lines(work/n/'metrics.jsonl')] for n in ('torchrun', 'deepspeed'))
    for x, y in zip(a, b, strict=True): assert x == pytest.approx(y, rel=1e-5)


def test_accelerate_starts_one_where_two_were_asked_for(work):
    "On CPUs it does, unless over MPI; the run is refused in one line, and leaves nothing."
    done = start(work, 'accelerate', 'accelerate', 'launch', '--cpu', '--num_processes', '2', '-m')
    [line] = [x for x in done.stderr.splitlines() if x.startswith('actionstudio: ')]
    assert done.returncode and 'found one process where several were asked for' in line and 'torchrun' in line, done.stderr
    assert not (work/'accelerate').exists()


def test_a_rank_that_fails_says_which_it_is(work):
    "A mistake that every rank sees: a line each, of which all but the first name their rank."
    shutil.copytree(work/'rows', work/'none')
    (work/'none/certificate.json').unlink()
    done = start(work, 'none-run', *torchrun(), data=str(work/'none'))
    found = sorted(x[:22] for x in done.stderr.splitlines() if x.startswith('actionstudio: '))
    assert done.returncode and found and set(found) <= {f'actionstudio: {work}'[:22], 'actionstudio: rank 1: '}, done.stderr

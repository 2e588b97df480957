"Two processes train as one does."
import json
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = 'import sys; from actionstudio.config import read_run; from actionstudio.sft import train_sft; train_sft(read_run(sys.argv[1]))'


@pytest.mark.slow
def test_two_processes_are_one(work, tmp_path):
    from actionstudio.config import Run, to_yaml
    losses = {}
    (tmp_path/'train.py').write_text(SCRIPT)
    for name, world in (('one', 1), ('two', 2)):
        run = Run(model=str(work/'model'), data=str(work/'rows'), out=str(tmp_path/name), regime='full', dtype='float32', row_tokens=128, devices=2, lr=1e-3)
        (tmp_path/f'{name}.yaml').write_text(to_yaml(run))
        start = [sys.executable] if world == 1 else [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-port', '29577']
        done = subprocess.run([*start, str(tmp_path/'train.py'), str(tmp_path/f'{name}.yaml')], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        losses[name] = [(x['loss'], x['grad_norm']) for x in map(json.loads, (tmp_path/name/'metrics.jsonl').read_text().splitlines())]
    assert len(losses['one']) > 3
    for a, b in zip(losses['one'], losses['two'], strict=True): assert a == pytest.approx(b, rel=1e-5)

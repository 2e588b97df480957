"The ladder's smallest steps run on a CPU; what needs a GPU is not run here."
import json
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip('torch')


@pytest.mark.parametrize('step,more', [('tiny', []), ('tiny', ['--regime', 'full', '--checkpointed', '1', '--attention', 'sdpa', '--mixed']), ('tiny-moe', [])])
def test_the_smallest_step(step, more, tmp_path):
    done = subprocess.run([sys.executable, ROOT/'nbs'/'bench'/'h200.py', '--step', step, '--device', 'cpu', '--steps', '2', '--warmup', '1', '--out', tmp_path, *more], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    [file] = tmp_path.glob('*.json')
    r = json.loads(file.read_text())
    assert len(r['seconds']) == 2 and r['tokens_per_second'] > 0 and abs(r['losses'][1] - r['losses'][0]) < .1
    assert r['device'] == 'cpu' and r['mfu'] is None and r['config_hash'] in file.name and r['versions']['torch']


def test_several_steps_leave_a_file_each(tmp_path):
    run = lambda *more: subprocess.run([sys.executable, ROOT/'nbs'/'bench'/'h200.py', '--device', 'cpu', '--out', tmp_path, '--steps', '1', '--warmup', '0', *more], capture_output=True, text=True, timeout=200)
    done = run('--attention', 'nonesuch', '--run', 'tiny')
    assert done.returncode == 0 and 'nonesuch' in done.stdout
    done = run('--run', 'tiny', 'tiny-moe', '--experts', 'sorted')
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done.stderr[-2000:]
    found = [json.loads(f.read_text()) for f in tmp_path.glob('*.json')]
    assert sorted((r['step'], 'error' in r) for r in found) == [('tiny', False), ('tiny', True), ('tiny-moe', False)]
    assert not run('--run', 'tiny', 'tiny-moe', '--experts', 'sorted').stdout  # Both have a result

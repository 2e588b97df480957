"Processes that work on pieces, and the process that dies."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

CODE = '''
import os, sys, time
from actionstudio.spread import spread

def who(n): time.sleep(.1); return os.getpid()

if __name__ == '__main__':
    with spread(who, 2, fork=sys.argv[1] == 'fork') as (begin, most):
        print(*{done() for done in [begin(n) for n in range(most)]}, flush=True)
        time.sleep(600)
'''


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems do not tell a process that its parent has died')
@pytest.mark.parametrize('how', ['fork', 'spawn'])
def test_workers_end_with_the_process_that_started_them(tmp_path, how):
    (tmp_path/'work.py').write_text(CODE)
    p = subprocess.Popen([sys.executable, tmp_path/'work.py', how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {'PYTHONPATH': str(ROOT)})
    workers = [Path('/proc')/pid for pid in p.stdout.readline().split()]
    assert len(workers) == 2 and all(w.exists() for w in workers)
    p.send_signal(signal.SIGKILL); p.wait()
    alive = lambda w: w.exists() and (w/'stat').read_text().split()[2] != 'Z'
    end = time.monotonic() + 10
    while any(map(alive, workers)): assert time.monotonic() < end, 'workers live on'; time.sleep(.05)

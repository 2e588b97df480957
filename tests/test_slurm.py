"""The Slurm job as it is generated, under a real Slurm: one controller and two daemons on this machine.

A job that is put back into the queue, and one that loses a node, must end with the weights of a run that nobody touched."""
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, free_port

NEEDED = ('munged', 'slurmctld', 'slurmd', 'sbatch')
SBIN = os.pathsep.join([os.environ['PATH'], '/usr/sbin', '/sbin'])
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not all(shutil.which(p, path=SBIN) for p in NEEDED), reason='no Slurm here: apt-get install slurm-wlm munge'),
              pytest.mark.skipif(os.geteuid() != 0, reason='slurmd starts jobs, which needs root')]

CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=1
NodeName=node-a NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000
NodeName=node-b NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""

def until(what, seconds, why):
    end = time.time() + seconds
    while not (found := what()):
        assert time.time() < end, why()
        time.sleep(.5)
    return found

class Slurm:
    "Two nodes of one machine; every daemon is a child of ours and is stopped by its id."
    def __init__(self, folder):
        self.folder, self.daemons = folder, {}
        self.env = os.environ | {'SLURM_CONF': str(folder/'slurm.conf'), 'PATH': f'{Path(sys.executable).parent}:{SBIN}', 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
        for d in ('state', 'spool-node-a', 'spool-node-b'): (folder/d).mkdir()
        (folder/'munge.key').write_bytes(os.urandom(128))
        (folder/'munge.key').chmod(0o600)
        (folder/'slurm.conf').write_text(CONF.format(folder=folder, host=socket.gethostname().split('.')[0], ports=[free_port() for _ in range(3)]))

    def daemon(self, name, *command):
        with open(self.folder/f'{name}.out', 'a') as out: self.daemons[name] = subprocess.Popen(command, env=self.env, stdout=out, stderr=out)

    def node(self, name): self.daemon(name, 'slurmd', '-D', '-N', name, '-f', str(self.folder/'slurm.conf'))

    def start(self):
        own = [f'--{k}={self.folder}/munge.{v}' for k, v in dict(socket='sock', **{'key-file': 'key', 'pid-file': 'pid', 'log-file': 'log', 'seed-file': 'seed'}).items()]
        self.daemon('munged', 'munged', '--foreground', '--force', *own)
        until((self.folder/'munge.sock').exists, 20, lambda: (self.folder/'munged.out').read_text())
        self.daemon('slurmctld', 'slurmctld', '-D', '-f', str(self.folder/'slurm.conf'))
        for name in ('node-a', 'node-b'): self.node(name)
        until(lambda: self('sinfo', '-h', '-o', '%D %t').split() == ['2', 'idle'], 40, lambda: (self.folder/'slurmctld.log').read_text()[-2000:])

    def stop(self):
        for p in reversed(self.daemons.values()): p.terminate()
        for p in self.daemons.values(): p.wait(30)

    def __call__(self, *command, cwd=None): return subprocess.run(command, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=60).stdout.strip()

    def state(self, job): return dict(x.split('=', 1) for x in self('scontrol', '--oneliner', 'show', 'job', job).split() if '=' in x).get('JobState')

    def lose(self, name):  # As if its power failed: the daemon and all that it started are gone
        self.daemons.pop(name).kill()
        for p in Path('/proc').glob('[0-9]*'):
            try: theirs = f'SLURMD_NODENAME={name}\0'.encode() in (p/'environ').read_bytes()
            except OSError: continue  # It has ended
            if theirs and int(p.name) != os.getpid(): os.kill(int(p.name), signal.SIGKILL)

@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    s = Slurm(tmp_path_factory.mktemp('slurm'))
    try:
        s.start()
        yield s
    finally: s.stop()

class Job:
    def __init__(self, slurm, work, launch_files, name):
        self.slurm, self.out = slurm, work/name
        self.folder = launch_files(name, dict(kind='slurm', rdzv_port=29500, env={'GLOO_SOCKET_IFNAME': 'lo'}), epochs=24.0, save_every=10)
        self.id = slurm('sbatch', '--parsable', 'job.sbatch', cwd=self.folder)
        assert self.id.isdigit()

    def step(self):
        try: return json.loads((self.out/'metrics.jsonl').read_text().splitlines()[-1])['step']
        except (OSError, IndexError, json.JSONDecodeError): return 0

    def log(self): return ''.join(f.read_text()[-3000:] for f in self.folder.glob('*.log')) + ''.join(f'\n{f}\n{f.read_text()[-1500:]}' for f in self.out.rglob('stderr.log')) + self.slurm('squeue', '--long')

    def midway(self): until(lambda: self.step() >= 25, 120, self.log)

    def end(self):
        until(lambda: self.slurm.state(self.id) in ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL'), 240, self.log)
        assert self.slurm.state(self.id) == 'COMPLETED', self.log()
        return hashlib.sha256((self.out/'model/model.safetensors').read_bytes()).hexdigest()

@pytest.fixture(scope='module')
def undisturbed(slurm, work, launch_files):
    job = Job(slurm, work, launch_files, 'undisturbed')
    return job, job.end()

def test_both_nodes_take_part(undisturbed):
    job, _ = undisturbed
    assert sorted(p.name for p in (job.out/'logs').iterdir() if p.is_dir()) == ['node-a', 'node-b']
    steps = [json.loads(x)['step'] for x in (job.out/'metrics.jsonl').read_text().splitlines()]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] > 60

def test_a_requeued_job_ends_with_the_same_weights(slurm, work, launch_files, undisturbed):
    job = Job(slurm, work, launch_files, 'requeued')
    job.midway()
    slurm('scontrol', 'requeue', job.id)
    assert job.end() == undisturbed[1]
    assert slurm('scontrol', '--oneliner', 'show', 'job', job.id).split('Restarts=')[1].split()[0] == '1'

def test_a_job_that_loses_a_node_comes_back(slurm, work, launch_files, undisturbed):
    job = Job(slurm, work, launch_files, 'lost')
    job.midway()
    slurm.lose('node-b')
    until(lambda: slurm.state(job.id) in ('PENDING', 'REQUEUED'), 90, job.log)
    slurm.node('node-b')
    assert job.end() == undisturbed[1]

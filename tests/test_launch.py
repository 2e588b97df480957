"""The generated scripts, really run: stand-ins for the cluster's programs, names that hope to be executed, signals, and a real torchrun.

The notebook shows what the scripts say; here is what they do."""
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import yaml
from conftest import ROOT, free_port

from actionstudio.config import Run, read_run, to_yaml
from actionstudio.cluster import Target
from actionstudio.launch import launch, launch_texts, write_texts
from actionstudio.schema import InputError

HOSTILE = ['a b', "it's", '"', '$(touch CANARY)', '`touch CANARY`', '"; touch CANARY; "', "'; touch CANARY; '", 'x\ntouch CANARY\n',
           '-n', '*', '$HOME', '{{ 7*7 }}', '\\', '#x', '&& touch CANARY', '}; touch CANARY; {', 'PY\ntouch CANARY', 'ü']

FAKES = {
    'nvidia-smi': 'for ((i=0; i<${FAKE_GPUS:-8}; i++)); do echo "NVIDIA H200"; done; exit ${FAKE_SMI:-0}',
    'torchrun': '''if [[ " $* " == *" preflight "* ]]; then
  printf '%s\\0' "$@" >"$RECORD.dry.${SLURM_NODEID:-0}"; exit "${FAKE_DRY:-0}"
fi
printf '%s\\0' "$@" >"$RECORD.${SLURM_NODEID:-0}"; env -0 >"$RECORD.${SLURM_NODEID:-0}.env"
if [[ -n ${FAKE_HANG:-} ]]; then
  trap 'echo saved >>"$RECORD.saved"; exit 1' TERM
  touch "$RECORD.up.${SLURM_NODEID:-0}"
  while :; do sleep .05; done
fi
exit "${FAKE_RC:-0}"''',
    'scontrol': '''if [[ $1 == --oneliner ]]; then echo "NodeName=$4 Arch=x NodeAddr=127.0.0.1 NodeHostName=$4"
elif [[ $1 == show ]]; then printf "%s\\n" node-a node-b; else echo "$@" >>"$RECORD.scontrol"; fi''',
    'srun': '''while [[ $1 == --* ]]; do shift; done
pids=(); trap 'kill -TERM "${pids[@]}"' TERM
for n in 0 1; do SLURM_NODEID=$n "$@" & pids+=($!); done
rc=0
for p in "${pids[@]}"; do
  while kill -0 "$p" 2>/dev/null; do wait "$p" || true; done
  code=0; wait "$p" || code=$?; ((code > rc)) && rc=$code
done
exit "$rc"'''}

class Cluster:
    "A folder with programs that only write down how they were called."
    def __init__(self, tmp):
        self.tmp, self.bin, self.work, self.job, self.record = tmp, tmp/'bin', tmp/'work', tmp/'work/job', tmp/'record'
        for d in (self.bin, self.job, tmp/'stub'): d.mkdir(parents=True)
        (tmp/'stub/torch.py').write_text('')
        for name, body in FAKES.items(): self.program(name, body)
        self.program('python', f"""if [[ "$1 $2 $3" == "-m actionstudio.cli preflight" ]]; then
  printf '%s\\0' "$@" >"$RECORD.look"; if [[ -n ${{FAKE_LOOK:-}} ]]; then printf 'a warning\\nactionstudio: %s\\n' "$FAKE_LOOK" >&2; exit 2; fi; exit 0
fi
exec {sys.executable} "$@\"""")
        self.env = dict(PATH=f'{self.bin}:/usr/bin:/bin', RECORD=str(self.record), PYTHONPATH=f'{tmp}/stub:{ROOT}', HOME=str(tmp))

    def program(self, name, body):
        (self.bin/name).write_text(f'#!/bin/bash\n{body}\n')
        (self.bin/name).chmod(0o755)

    def folders(self, model='model', data='data'):
        for d in (model, data): (self.work/d).mkdir(parents=True, exist_ok=True)
        for f in ('encoded.parquet', 'certificate.json'): (self.work/data/f).touch()

    def write(self, run, target):
        for name, text in launch(run, target).items(): (self.job/name).write_text(text)

    def start(self, *args, **env):
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(['bash', *args], cwd=self.work, env=self.env | env, **pipes)

    def node(self, *args, **env):
        p = self.start('job/node.sh', *args, **env)
        p.out, p.err = p.communicate(timeout=60)
        return p
    def args(self, node=0): return Path(f'{self.record}.{node}').read_bytes().decode().split('\0')[:-1]
    def variables(self, node=0):
        return dict(v.split('=', 1) for v in Path(f'{self.record}.{node}.env').read_bytes().decode().split('\0')[:-1])

@pytest.fixture
def cluster(tmp_path):
    c = Cluster(tmp_path)
    yield c
    assert not list(tmp_path.rglob('CANARY*')), 'a name was executed'

RUN = Run(model='model', data='data', out='out', regime='full', budget=1000)
BARE = dict(kind='torchrun', nodes=2, gpus_per_node=8, name='demo')
def bare(**kw): return Target(**(BARE | kw))

def test_torchrun_gets_the_words(cluster):
    cluster.folders()
    port = free_port()
    cluster.write(RUN, bare(rdzv_port=port, max_restarts=1))
    p = cluster.node('127.0.0.1')
    assert p.returncode == 0, p.err
    args, here = cluster.args(), str(cluster.job)
    after = lambda name, words=args: words[words.index(name) + 1]
    assert args[:6] == ['--nnodes', '2', '--nproc-per-node', '8', '--rdzv-backend', 'c10d']
    assert [after(x) for x in ('--rdzv-endpoint', '--rdzv-id', '--max-restarts')] == [f'127.0.0.1:{port}', 'demo', '1']
    tried = cluster.args('dry.0')
    assert tried[:6] == args[:6] and tried[-5:] == ['actionstudio.cli', 'preflight', f'{here}/run.yaml', '--steps', '2']
    assert [after(x, tried) for x in ('--rdzv-endpoint', '--rdzv-id', '--max-restarts')] == [f'127.0.0.1:{port + 1000}', 'demo-dry-run', '0']
    assert args[-4:] == ['-m', 'actionstudio.cli', 'train', f'{here}/run.yaml']
    assert cluster.node('127.0.0.1', FAKE_RC='9').returncode == 9
    assert args[args.index('--rdzv-conf') + 1] == 'is_host=1' and p.out.startswith('preflight on ')
    assert read_run(args[-1]) == RUN

@pytest.mark.parametrize('name', HOSTILE)
def test_no_value_is_executed(cluster, name):
    folders = {k: f'{k}/{name}' for k in ('model', 'data', 'out')}
    run = Run(**folders, lora_targets=[name, 'q_proj'])
    cluster.folders(folders['model'], folders['data'])
    cluster.write(run, bare(env={'NCCL_X': name}, rdzv_port=free_port()))
    p = cluster.node('127.0.0.1')
    assert p.returncode == 0, p.err
    assert cluster.variables()['NCCL_X'] == name
    assert read_run(cluster.args()[-1]) == run
    assert (cluster.work/folders['out']).is_dir()

@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_head_or_missing_folder_is_only_text(cluster, name):
    cluster.write(Run(model=f'm{name}', data='d', out='o'), bare(rdzv_port=free_port()))
    p = cluster.node(name)
    assert p.returncode == 2 and f'm{name}' in p.err
    cluster.folders(f'm{name}', 'd')
    p = cluster.node(f'{name}.invalid')
    assert p.returncode == 2 and 'expected a known name and a free port' in p.err

@pytest.mark.parametrize('field', ['name', 'partition', 'account', 'time', 'kind', 'secrets', 'env'])
def test_what_cannot_be_quoted_is_refused(field):
    ok = dict(kind='slurm', nodes=1, gpus_per_node=1)
    for name in [*HOSTILE, '', 'a\n', '\n#SBATCH --uid=0']:
        value = [name] if field == 'secrets' else {name: 'x'} if field == 'env' else name
        with pytest.raises(InputError): Target(**(ok | {field: value}))

@pytest.mark.parametrize('name', HOSTILE)
def test_slurm_job_with_hostile_folders(cluster, name):
    folders = {k: f'{k}/{name}' for k in ('model', 'data', 'out')}
    cluster.folders(folders['model'], folders['data'])
    cluster.job = cluster.work  # sbatch is called in the folder of the job
    target = Target(kind='slurm', nodes=2, gpus_per_node=8, env={'NCCL_X': name}, rdzv_port=free_port())
    cluster.write(Run(**folders), target)
    p = slurm(cluster, SLURM_JOB_ID='4000')
    out, err = p.communicate(timeout=60)
    assert p.returncode == 0, err
    assert cluster.variables(1)['NCCL_X'] == name

def slurm(cluster, **env):
    job = dict(SLURM_SUBMIT_DIR=str(cluster.work), SLURM_JOB_NODELIST='node-[a-b]', SLURM_JOB_ID='42') | env
    spool = cluster.tmp/'spool/slurm_script'  # Slurm runs a copy
    spool.parent.mkdir(exist_ok=True)
    (cluster.work/'job.sbatch').replace(spool)
    return cluster.start(str(spool), **job)

@pytest.fixture
def job(cluster):
    cluster.folders()
    cluster.job = cluster.work
    cluster.base = free_port()
    cluster.write(RUN, Target(kind='slurm', nodes=2, gpus_per_node=8, rdzv_port=cluster.base, cpus_per_node=4))
    return cluster

def test_slurm_deals_out_the_head(job):
    p = slurm(job)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 0, err
    for node in (0, 1):
        args = job.args(node)
        assert f'127.0.0.1:{job.base + 42}' in args and args[args.index('--rdzv-id') + 1] == '42'
        assert args[args.index('--rdzv-conf') + 1] == f'is_host={int(node == 0)}'
        assert job.variables(node)['SRUN_CPUS_PER_TASK'] == '4'

def test_the_exit_code_of_a_trainer_is_the_jobs(job):
    p = slurm(job, FAKE_RC='7')
    p.communicate(timeout=60)
    assert p.returncode == 7 and not Path(f'{job.record}.scontrol').exists()

@pytest.mark.parametrize('sent, requeued', [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_reaches_every_trainer(job, sent, requeued):
    p = slurm(job, FAKE_HANG='1')
    until = time.time() + 30
    while not all(Path(f'{job.record}.up.{n}').exists() for n in (0, 1)):
        assert time.time() < until and p.poll() is None, 'the nodes did not start'
        time.sleep(.05)
    p.send_signal(sent)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 1, err
    assert Path(f'{job.record}.saved').read_text() == 'saved\n' * 2
    asked = Path(f'{job.record}.scontrol')
    assert (asked.read_text() == 'requeue 42\n') if requeued else not asked.exists()

def test_preflight_names_the_fault(cluster):
    port = free_port()
    cluster.write(RUN, bare(rdzv_port=port, secrets=['HF_TOKEN']))
    def refused(text, *args, **env):
        p = cluster.node(*args, **env)
        assert p.returncode == 2 and text in p.err and not list(cluster.tmp.glob('record.[0-9]*')), p.err
        return p.err
    secret = dict(HF_TOKEN='hf_very_secret')
    refused('expected: bash node.sh HEAD_ADDRESS')
    refused('found no environment variable HF_TOKEN', '127.0.0.1')
    said = refused('found 3 GPUs, expected 8', '127.0.0.1', FAKE_GPUS='3', **secret)
    said += refused('an nvidia-smi that fails', '127.0.0.1', FAKE_SMI='9', **secret)
    said += refused('found no folder model', '127.0.0.1', **secret)
    (cluster.work/'model').mkdir()
    said += refused('found no data/encoded.parquet', '127.0.0.1', **secret)
    (cluster.work/'data').mkdir()
    (cluster.work/'data/encoded.parquet').touch()
    said += refused('found no data/certificate.json', '127.0.0.1', **secret)
    cluster.folders()
    said += refused('tokenizer 12 made these rows, but 34', '127.0.0.1', FAKE_LOOK='tokenizer 12 made these rows, but 34', **secret)
    said += refused('the dry run failed: no process of this node says why', '127.0.0.1', FAKE_DRY='1', **secret)
    shutil.rmtree(cluster.work/'out')
    (cluster.work/'out').write_text('a file')
    said += refused('found out not writable', '127.0.0.1', **secret)
    (cluster.work/'out').unlink()
    with socket.socket() as s:
        s.bind(('127.0.0.1', port))
        s.listen()
        said += refused('in use', '127.0.0.1', **secret)
    (cluster.bin/'torchrun').rename(cluster.bin/'off')
    said += refused('found no torchrun on PATH', '127.0.0.1', **secret)
    (cluster.bin/'off').rename(cluster.bin/'torchrun')
    p = cluster.node('127.0.0.1', **secret)
    assert p.returncode == 0, p.err
    assert 'hf_very_secret' not in said + p.out + p.err
    assert all(b'hf_very_secret' not in f.read_bytes() for f in cluster.work.rglob('*') if f.is_file())

def test_a_dry_run_is_not_repeated(cluster):
    "It leaves the run file, under the number of processes: the same file on as many begins at once; another number, or a file that changed, is tried again; and it can be switched off."
    cluster.folders()
    dry = Path(f'{cluster.record}.dry.0')
    def tried(**keys):
        dry.unlink(missing_ok=True)
        cluster.write(RUN, bare(**({'rdzv_port': free_port()} | keys)))
        p = cluster.node('127.0.0.1')
        assert p.returncode == 0, p.err
        return dry.exists()
    assert tried()
    (cluster.work/'out/dry_run_16.yaml').write_text((cluster.job/'run.yaml').read_text())
    assert not tried() and tried(nodes=4) and not tried(nodes=4, trial_steps=0)
    (cluster.work/'out/dry_run_16.yaml').write_text(to_yaml(RUN) + 'seed: 1\n')
    assert tried()

def test_a_signal_ends_a_dry_run(cluster):
    cluster.folders()
    cluster.write(RUN, bare(rdzv_port=free_port()))
    cluster.program('torchrun', 'trap "touch $RECORD.saved; exit 1" TERM; touch "$RECORD.up"; while :; do sleep .05; done')
    p, until = cluster.start('job/node.sh', '127.0.0.1'), time.time() + 30
    while not Path(f'{cluster.record}.up').exists():
        assert time.time() < until and p.poll() is None
        time.sleep(.05)
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=30)
    assert p.returncode == 143 and Path(f'{cluster.record}.saved').exists()

def test_pairs_are_a_file(cluster):
    (cluster.work/'model').mkdir()
    cluster.write(Run(model='model', data='pairs.jsonl', out='out', objective='dpo'), bare(rdzv_port=free_port()))
    p = cluster.node('127.0.0.1')
    assert p.returncode == 2 and 'found no file pairs.jsonl, expected trajectories with chosen and rejected' in p.err
    (cluster.work/'pairs.jsonl').touch()
    p = cluster.node('127.0.0.1')
    assert p.returncode == 0, p.err

def test_a_foreign_head_needs_no_free_port_here(cluster):
    cluster.folders()
    cluster.write(RUN, bare(rdzv_port=free_port()))
    assert cluster.node('192.0.2.1').returncode == 0  # TEST-NET-1: no machine of ours

def test_one_node_needs_no_head(cluster):
    cluster.folders()
    cluster.write(RUN, bare(nodes=1, gpus_per_node=0, rdzv_port=free_port()))
    (cluster.bin/'nvidia-smi').unlink()
    p = cluster.node()
    assert p.returncode == 0, p.err
    assert cluster.args()[3] == '1'

def test_write_launch_leaves_all_or_old(tmp_path, monkeypatch):
    (tmp_path/'run.yaml').write_text(to_yaml(RUN))
    monkeypatch.chdir(tmp_path)
    write_texts(launch_texts('run.yaml', kind='torchrun', nodes=2, gpus_per_node=8), 'job')
    old = (tmp_path/'job/node.sh').read_text()
    with pytest.raises(OSError):
        with monkeypatch.context() as m:
            m.setattr(os, 'replace', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
            write_texts(launch_texts('run.yaml', kind='torchrun', nodes=4, gpus_per_node=8), 'job', force=True)
    assert (tmp_path/'job/node.sh').read_text() == old
    assert sorted(p.name for p in (tmp_path/'job').iterdir()) == ['node.sh', 'run.yaml']
    with pytest.raises(InputError): write_texts(launch_texts('run.yaml', kind='torchrun', nodes=2, gpus_per_node=8), 'run.yaml')

TRAINER = """import os, sys
if sys.argv[1] == 'preflight': sys.exit()
print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], 'group', os.environ['GROUP_RANK'], sys.argv[1:])
sys.exit(int(os.environ.get('RC', '0')))
"""  # Looks and rehearsals are those of another test

@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='no torch')
@pytest.mark.parametrize('rc', [0, 5])
def test_two_real_torchruns_find_each_other(cluster, rc):
    cluster.folders()
    base = free_port()
    cluster.write(RUN, Target(kind='slurm', nodes=2, gpus_per_node=0, rdzv_port=base, max_restarts=0, save_seconds=5))
    (cluster.tmp/'stub/actionstudio').mkdir()
    (cluster.tmp/'stub/actionstudio/__init__.py').touch()
    (cluster.tmp/'stub/actionstudio/cli.py').write_text(TRAINER)
    (cluster.tmp/'stub/torch.py').unlink()
    cluster.program('torchrun', f'exec {sys.executable} -m torch.distributed.run "$@"')
    nodes = [cluster.start('job/node.sh', '127.0.0.1', SLURM_JOB_ID='7', SLURM_NODEID=str(n), RC=str(rc)) for n in (0, 1)]
    said = [p.communicate(timeout=120) for p in nodes]
    assert [p.returncode for p in nodes] == [int(rc > 0)] * 2, said
    logs = [f.read_text() for f in sorted((cluster.work/'out/logs').rglob('stdout.log')) if 'dry-run' not in f.parts]
    assert sorted(l.split(' group')[0] for l in logs) == ['rank 0 of 2', 'rank 1 of 2']
    assert all(f"['train', '{cluster.job}/run.yaml']" in l for l in logs)

def test_other_versions_are_named(cluster):
    cluster.folders()
    cluster.write(RUN, bare(rdzv_port=free_port()))
    assert cluster.node('127.0.0.1').returncode == 0
    mine = next((cluster.work/'out/versions').iterdir())
    other = mine.with_name('node-b')
    other.write_text(mine.read_text().replace('python 3', 'python 2'))
    p = cluster.node('127.0.0.1')
    assert p.returncode == 2 and 'found other versions than on node-b' in p.err and 'python 2' in p.err, p.err
    os.utime(other, (time.time() - 7200,) * 2)  # Of a launch long ago
    assert cluster.node('127.0.0.1').returncode == 0

KINDS = [dict(kind='torchrun', nodes=2), dict(kind='torchrun', nodes=2, hosts=['a', 'b']), dict(kind='slurm', nodes=2), dict(kind='slurm', nodes=1, sweep={'lr': [1e-5, 2e-5]}),
         dict(kind='kubernetes', nodes=2, name='demo', image='x', claim='c', secret='s'), dict(kind='deepspeed', nodes=2, hosts=['a', 'b'])]

WORST = 'a \'b\' "c" $(touch CANARY) `touch CANARY`; touch CANARY & {{ 7*7 }}\ntouch CANARY\nPY\ntouch CANARY\n'

def texts(kind):
    "The fields that take any text, with a way to put one in."
    for f in msgspec.structs.fields(kind):
        if 'Literal' in str(f.type): continue
        if f.type in (str, str | None): yield f.name, lambda x: x
        elif 'dict' in str(f.type): yield f.name, lambda x: {'lora_targets': [[x]]} if 'list' in str(f.type) else {'NCCL_X': x}
        elif 'str' in str(f.type): yield f.name, (lambda x: x) if f.type == str | int | None else lambda x: [x]

@pytest.mark.parametrize('field', [n for n, _ in texts(Run)])
def test_no_field_of_a_run_is_executed(cluster, field):
    "The worst of all names at once, in each field that takes text."
    run = Run(**dict(model='model', data='data', out='out') | {field: dict(texts(Run))[field](WORST)})
    cluster.folders(run.model, run.data)
    cluster.write(run, bare(rdzv_port=free_port()))
    p = cluster.node('127.0.0.1')
    assert p.returncode == 0 and read_run(cluster.args()[-1]) == run, p.err

@pytest.mark.parametrize('field', [n for n, _ in texts(Target)])
@pytest.mark.parametrize('keys', KINDS[:2] + KINDS[2:3] + KINDS[4:], ids=lambda k: k['kind'] + '-hosts' * ('hosts' in k))
def test_no_field_of_a_target_is_executed(cluster, keys, field):
    "Refused by name, or only text: in the scripts, which run, and in the manifest, which says what was said."
    value = dict(texts(Target))[field]('/' * (field == 'mount') + WORST)
    try: target = Target(**dict(gpus_per_node=8, rdzv_port=free_port()) | keys | {field: value})
    except InputError as e: assert f'key `{field}`' in str(e); return
    assert field in ('env', 'image', 'mount'), field
    cluster.folders()
    cluster.write(RUN, target)
    p = cluster.node('127.0.0.1', SLURM_JOB_ID='7')
    assert p.returncode == 0, p.err
    assert field != 'env' or cluster.variables()['NCCL_X'] == WORST
    if keys['kind'] != 'kubernetes' or field == 'env': return
    pod = list(yaml.safe_load_all((cluster.job/'jobset.yaml').read_text()))[1]['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']['containers'][0]
    assert value in (pod['image'], pod['volumeMounts'][1]['mountPath'])

@pytest.mark.parametrize('keys', KINDS, ids=lambda k: f"{k['kind']}{'-hosts' * ('hosts' in k)}{'-sweep' * ('sweep' in k)}")
def test_a_key_in_the_environment_is_written_nowhere(cluster, monkeypatch, keys):
    key = 'hf_' + 'Zq7' * 9
    for name in ('HF_TOKEN', 'WANDB_API_KEY', 'AWS_SECRET_ACCESS_KEY'): monkeypatch.setenv(name, key)
    target = Target(gpus_per_node=8, rdzv_port=free_port(), secrets=[] if keys['kind'] == 'deepspeed' else ['HF_TOKEN'], **keys)
    cluster.folders()
    cluster.write(RUN, target)
    assert not any(key in text for text in launch(RUN, target).values())
    p = cluster.node('127.0.0.1', HF_TOKEN=key, WANDB_API_KEY=key, SLURM_JOB_ID='7', **({'RUN_FILE': 'run-0.yaml'} if 'sweep' in keys else {}))
    assert p.returncode == 0, p.err
    assert cluster.variables()['HF_TOKEN'] == key and key not in p.out + p.err
    assert not [f for f in cluster.work.rglob('*') if f.is_file() and key.encode() in f.read_bytes()]

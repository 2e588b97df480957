"""Ranks without a launcher: this process imports what is slow, once, and forks the ranks of each run, with the environment that torchrun would give them.

    python nursery.py JOBS.json     [{"run": file, "world": 4, "local": 2}, …]; writes one line of JSON a job: {"codes": […], "seconds": …}"""
import json
import os
import socket
import sys
import time
import traceback

os.environ.setdefault('OMP_NUM_THREADS', '1')


def rank(job: dict, k: int, port: int):
    env = dict(RANK=k, WORLD_SIZE=job['world'], LOCAL_WORLD_SIZE=job.get('local', job['world']), LOCAL_RANK=k % job.get('local', job['world']), MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    if job['world'] > 1 or job.get('launched'): os.environ |= {name: str(v) for name, v in env.items()}
    os.environ |= job.get('env', {})
    from actionstudio.config import read_run
    from actionstudio.dpo import train_dpo
    from actionstudio.sft import train_sft
    run, stop = read_run(job['run']), job.get('stop')
    if k in job.get('slow', {}).get('ranks', []): slow_down(job['slow']['seconds'])
    def on_step(line):
        if stop and line['step'] == stop: os._exit(7)  # As a kill would
        if line['step'] == job.get('hang'): time.sleep(1000)
    (train_dpo if run.objective == 'dpo' else train_sft)(run, on_step)


def slow_down(seconds: float):
    "Every forward pass of this process takes so much longer."
    import actionstudio.sft
    load = actionstudio.sft.load_for_training
    def loading(*args):
        model = load(*args)
        next(m for name, m in model.named_modules() if name.endswith('layers.0')).register_forward_pre_hook(lambda *_: time.sleep(seconds))
        return model
    actionstudio.sft.load_for_training = loading


def start(job: dict) -> dict:
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    begun, pids = time.time(), []
    for k in range(job['world']):
        if pid := os.fork(): pids.append(pid); continue
        log = os.open(f"{job['run']}.{k}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1); os.dup2(log, 2)
        try: rank(job, k, port)
        except BaseException: traceback.print_exc(); sys.stderr.flush(); os._exit(1)
        sys.stdout.flush(); os._exit(0)
    codes = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid] != 0:  # As torchrun does
            for other in set(pids) - set(codes): os.kill(other, 15 if job.get('gently') else 9)
    return {'codes': [codes[p] for p in pids], 'seconds': round(time.time() - begun, 1)}


if __name__ == '__main__':
    import deepspeed  # noqa: F401

    import actionstudio.dpo  # noqa: F401
    for job in json.load(open(sys.argv[1])): print(json.dumps(start(job)), flush=True)

"What several tests need."
import os
import random
import socket
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAUNCHED = {k: v for k, v in os.environ.items() if not k.startswith('SLURM')} | {
    'PATH': f"{Path(sys.executable).parent}:{os.environ['PATH']}", 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo', 'HF_HUB_OFFLINE': '1'}  # What a launcher finds


def free_port():
    "Of this machine, where nobody is given one by chance; the port that a dry run takes is free too."
    while True:
        port = random.randrange(2000, 31000)
        try:
            for p in (port, port + 1000):
                with socket.socket() as s: s.bind(('127.0.0.1', p))
            return port
        except OSError: continue  # Somebody has it


@pytest.fixture
def actionstudio():
    "Run the command line as a user does: returns (exit code, output, errors)."
    def run(*args, cwd=None, **env):
        done = subprocess.run([sys.executable, '-m', 'actionstudio.cli', *map(str, args)], capture_output=True, text=True, cwd=cwd or ROOT,
                              env=os.environ | {'PYTHONPATH': str(ROOT)} | env)
        return done.returncode, done.stdout, done.stderr
    return run


@pytest.fixture(scope='session')
def model(tmp_path_factory):
    "A model folder with SmolLM2's tokenizer, our template, and a tiny random model's config."
    from transformers import LlamaConfig

    from actionstudio.assets import smollm2_tokenizer
    from actionstudio.render import CHATML_TOOLS
    folder, tok = tmp_path_factory.mktemp('model'), smollm2_tokenizer()
    tok.chat_template = CHATML_TOOLS
    tok.save_pretrained(folder)
    LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=len(tok)).save_pretrained(folder)
    return folder


@pytest.fixture(scope='session')
def weighted(model):
    "The same folder, and weights in it."
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    return model


@pytest.fixture(scope='module')
def work(weighted, tmp_path_factory):
    "A folder to train in: `model`, and `rows` of sixty short runs."
    from actionstudio.encode_file import encode_file
    from actionstudio.store import write
    folder = tmp_path_factory.mktemp('work')
    say = lambda k: [{"role": "user", "content": f"Say {k}."}, {"role": "assistant", "content": "word " * (1 + k % 7) + str(k)}]
    write(folder/'d.jsonl', [{"unique_trajectory_id": str(k), "task_instruction": "", "tools": [], "conversation": say(k)} for k in range(60)])
    encode_file(folder/'d.jsonl', folder/'rows', weighted)
    (folder/'model').symlink_to(weighted)
    return folder


@pytest.fixture(scope='module')
def launch_files(work):
    "Write a run file for `work`, and the scripts that start it on a target: returns their folder."
    from actionstudio.config import Run, to_yaml
    from actionstudio.launch import launch_texts, write_texts
    def written(name, target={}, **keys):
        run = Run(**(dict(model=str(work/'model'), data=str(work/'rows'), out=str(work/name), regime='full', dtype='float32', row_tokens=64, lr=1e-3) | keys))
        (work/f'{name}.yaml').write_text(to_yaml(run))
        cpus = dict(kind='torchrun', nodes=2, gpus_per_node=0, max_restarts=0, save_seconds=5, rdzv_port=free_port())
        write_texts(launch_texts(work/f'{name}.yaml', **(cpus | target)), work/f'{name}-job')
        return work/f'{name}-job'
    return written


@pytest.fixture(scope='module')
def ray():
    "Ray on this machine, with two CPUs."
    ray = pytest.importorskip('ray')
    try: ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
    except Exception as e: pytest.skip(f'Ray does not start here (it gives up after 15 s on a busy machine): {e}')
    yield ray
    ray.shutdown()


CHROMIUM_FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run']


@pytest.fixture(scope='session')
def browser():
    "Chromium, driven by Playwright; installed with apt where it is absent and we may."
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if not shutil.which('chromium') and shutil.which('apt-get') and os.geteuid() == 0:
        for command in (['apt-get', 'update', '-q'], ['apt-get', 'install', '-q', '-y', 'chromium']): subprocess.run(command, capture_output=True, timeout=600)
    if not shutil.which('chromium'): pytest.skip('chromium is not installed, and cannot be installed here')
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=shutil.which('chromium'), args=CHROMIUM_FLAGS)
        yield b
        b.close()


@pytest.fixture
def open_page(browser):
    "Open a page that is watched: returns it with `dialogs`, `asked` (requests that went out; those for files are not counted) and `errors` as lists."
    pages = []
    def opened(url, **options):
        page = browser.new_context(viewport={'width': 1500, 'height': 900}, **options).new_page()
        page.dialogs, page.asked, page.errors = [], [], []
        page.on('dialog', lambda d: d.accept() if d.type == 'beforeunload' else (page.dialogs.append(d.message), d.dismiss()))
        page.on('request', lambda r: page.asked.append(r.url) if not r.url.startswith(('data:', 'blob:', 'file:', 'about:')) else None)
        page.on('requestfailed', lambda r: page.asked.remove(r.url) if r.failure == 'csp' and r.url in page.asked else None)  # The page's policy stopped it
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        page.goto(url)
        pages.append(page)
        return page
    yield opened
    for page in pages: page.context.close()

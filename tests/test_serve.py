"A bundle against a real server: `transformers serve`."
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest

from actionstudio.store import write


@contextmanager
def served(folder, log):
    "A server on a folder; gives its URL."
    with socket.socket() as s: s.bind(('localhost', 0)); port = s.getsockname()[1]
    with open(log, 'w') as out:
        p = subprocess.Popen([sys.executable, '-m', 'transformers.cli.transformers', 'serve', str(folder), '--port', str(port), '--device', 'cpu'], stdout=out, stderr=out,
                             env=os.environ | {'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'})
        try:
            for _ in range(600):
                if p.poll() is not None: pytest.fail(log.read_text()[-2000:])
                try: urllib.request.urlopen(f'http://localhost:{port}/health', timeout=2); break
                except OSError: time.sleep(.2)
            yield f'http://localhost:{port}/v1'
        finally: p.terminate(); p.wait()


@pytest.fixture(scope='module')
def bundle(model, tmp_path_factory):
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    from actionstudio.serve import bundle as make
    pytest.importorskip('fastapi'); pytest.importorskip('uvicorn')
    folder = tmp_path_factory.mktemp('served')
    torch.manual_seed(0)
    LlamaForCausalLM(AutoConfig.from_pretrained(model)).save_pretrained(folder/'model')
    AutoTokenizer.from_pretrained(model).save_pretrained(folder/'model')
    tool = {'type': 'function', 'function': {'name': 'f', 'description': 'F', 'parameters': {'type': 'object', 'properties': {'x': {'type': 'integer'}}}}}
    call = [{'id': 'c', 'type': 'function', 'function': {'name': 'f', 'arguments': {'x': 1}}}]
    done = [{'role': 'assistant', 'content': '', 'tool_calls': call}, {'role': 'tool', 'name': 'f', 'tool_call_id': 'c', 'content': '42'}, {'role': 'assistant', 'content': 'It is 42.'}]
    write(folder/'runs.jsonl', [{'unique_trajectory_id': f't{k}', 'task_instruction': 'Be brief.', 'tools': [tool], 'conversation': [
        {'role': 'user', 'content': f'Call f, {k}.'}, *done[:1 + 2 * (k % 2)]]} for k in range(6)])
    make(folder/'model', folder/'bundle', folder/'runs.jsonl', max_new_tokens=16)
    return folder/'bundle'


@pytest.mark.slow
def test_the_server_says_what_was_trained(bundle, tmp_path, actionstudio):
    with served(bundle, tmp_path/'log') as url:
        code, out, err = actionstudio('parity', bundle, '--base-url', url)
        assert code == 0, out + err + (tmp_path/'log').read_text()[-2000:]
        assert "compared through the server's folder" in out and '6' in out
        print(out)


@pytest.mark.slow
@pytest.mark.parametrize('old, new, sees', [('may call', 'may cell', 'prompt, character'), ('these functions:', 'these functions.', 'prompt, character')])
def test_one_character_of_the_template(bundle, tmp_path, actionstudio, old, new, sees):
    changed = tmp_path/'changed'
    shutil.copytree(bundle, changed)
    template = (changed/'chat_template.jinja').read_text()
    assert template.count(old) == 1
    (changed/'chat_template.jinja').write_text(template.replace(old, new))
    with served(changed, tmp_path/'log') as url:
        code, out, err = actionstudio('parity', bundle, '--base-url', url, '--model', changed)
        assert code == 1 and sees in err and old in err and new in err, out + err
        print(err)


@pytest.mark.slow
def test_a_token_more_is_seen_from_afar(bundle, tmp_path):
    "The server's folder is out of reach: its own count of the prompt's tokens is left."
    from actionstudio.ask import Endpoint
    from actionstudio.serve import parity
    changed = tmp_path/'changed'
    shutil.copytree(bundle, changed)
    (changed/'chat_template.jinja').write_text((changed/'chat_template.jinja').read_text().replace('may call', 'may also call'))
    with served(changed, tmp_path/'log') as url:
        found = parity(bundle, Endpoint(base_url=url), str(changed), served=tmp_path/'nowhere')
        assert not found.ok and 'tokens: trained' in found.difference, found
        print(found)

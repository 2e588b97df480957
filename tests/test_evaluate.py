"An evaluation that is killed goes on, and scores what an undisturbed one scores."
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from actionstudio.store import load_json, write


@pytest.fixture(scope='module')
def talker(model, tmp_path_factory):
    "A model folder with a tiny random model, and queries."
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM
    folder = tmp_path_factory.mktemp('talker')
    torch.manual_seed(0)
    LlamaForCausalLM(AutoConfig.from_pretrained(model)).save_pretrained(folder/'model')
    AutoTokenizer.from_pretrained(model).save_pretrained(folder/'model')
    call = [{'id': 'c', 'type': 'function', 'function': {'name': 'f', 'arguments': {'x': 1}}}]
    write(folder/'runs.jsonl', [{'unique_trajectory_id': f't{k}', 'task_instruction': '', 'tools': [], 'conversation': [
        {'role': 'user', 'content': f'word {k}'}, {'role': 'assistant', 'content': '', 'tool_calls': call}]} for k in range(120)])
    return folder


def start(talker, out):
    return subprocess.Popen([sys.executable, '-m', 'actionstudio.cli', 'evaluate', str(talker/'model'), str(talker/'runs.jsonl'), '--batch-size', '4', '--max-new-tokens', '60', '--out', str(out)],
                            cwd=ROOT, env=os.environ | {'PYTHONPATH': str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_it_goes_on_and_scores_the_same(talker, tmp_path):
    part, kept = tmp_path/'.killed.part'/'generations.jsonl', []
    for least in (1, 40):
        p = start(talker, tmp_path/'killed')
        while p.poll() is None and (not part.exists() or part.read_bytes().count(b'\n') < least): time.sleep(.02)
        p.send_signal(signal.SIGKILL)
        p.wait()
        kept.append(part.read_bytes().count(b'\n'))
    assert 0 < kept[0] < kept[1] < 120
    for out in ('killed', 'whole'):
        p = start(talker, tmp_path/out)
        assert p.wait() == 0, p.stderr.read()
    a, b = (load_json(tmp_path/out/'scores.json') for out in ('killed', 'whole'))
    assert a == b
    lines = (tmp_path/'killed'/'generations.jsonl').read_bytes().splitlines()
    assert len(lines) == 120

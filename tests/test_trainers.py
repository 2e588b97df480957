"""Files for LLaMA-Factory and axolotl, read by their own loaders: every record arrives, with its texts, tools and calls.

Both need more than a test should pull in, so they are looked for in the folder that `ACTIONSTUDIO_TRAINERS` names:
pip install --no-deps --target FOLDER llamafactory==0.9.5 axolotl==0.19.0 omegaconf antlr4-python3-runtime==4.9.3 colorama addict posthog==6.7.11 backoff distro numba llvmlite
"""
import importlib.machinery
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from actionstudio.convert import convert_file
from actionstudio.formats.targets import export_for
from actionstudio.store import write

SHARED, TRAINERS = ROOT.parent/'shared/data', os.environ.get('ACTIONSTUDIO_TRAINERS', '')
SOURCES = ('adp_androidcontrol', 'adp_codeactinstruct', 'adp_swe-gym_openhands_sampled_trajectories', 'dialogstudio_sgd', 'glaive_sharegpt_en', 'tau_bench_airline', 'toolace_mangled')
TOOL = {"type": "function", "function": {"name": "quote", "parameters": {"type": "object", "properties": {"ticker": {"type": "string"}}}}}
CALLS = [{"id": f"c{k}", "type": "function", "function": {"name": "quote", "arguments": {"ticker": x, "n": 1.0}}} for k, x in enumerate('AB')]
SAID = [{"role": "user", "content": "A and B?"}, {"role": "assistant", "content": "", "reasoning_content": "Both.", "tool_calls": CALLS},
        *({"role": "tool", "name": "quote", "tool_call_id": c['id'], "content": [{"price": 5}]} for c in CALLS), {"role": "assistant", "content": "5 and 5."}]
MADE = [{"unique_trajectory_id": "plain", "task_instruction": "", "tools": [], "conversation": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        {"unique_trajectory_id": "full", "task_instruction": "Be brief.", "tools": [TOOL], "conversation": SAID}]
pytestmark = pytest.mark.slow

LLAMAFACTORY = '''
import importlib.machinery, json, sys, types
try: import torchaudio
except (ImportError, OSError):  # Sound is no part of this: a name stands where LLaMA-Factory imports the library
    sys.modules['torchaudio'] = types.ModuleType('torchaudio'); sys.modules['torchaudio'].__spec__ = importlib.machinery.ModuleSpec('torchaudio', None)
from llamafactory.data.loader import _load_single_dataset
from llamafactory.data.parser import get_dataset_list
from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import DataArguments, ModelArguments
from transformers import Seq2SeqTrainingArguments

from actionstudio.assets import smollm2_tokenizer
folder, tok, qwen = sys.argv[1], smollm2_tokenizer(), TEMPLATES['qwen3']
[attr] = get_dataset_list(['runs'], folder)
data = DataArguments(dataset='runs', dataset_dir=folder, template='qwen3')
rows = _load_single_dataset(attr, ModelArguments(model_name_or_path='none', cache_dir=folder + '/cache'), data, Seq2SeqTrainingArguments(output_dir=folder, report_to=[]))
for r in rows:
    said = r['_prompt'] + r['_response']
    qwen.encode_multiturn(tok, said, r['_system'], r['_tools'])  # Reads calls and tools as JSON; raises where it cannot
    written = [qwen.format_function.apply(content=m['content'], thought_words=qwen.thought_words)[0].split('<|im_end|>')[0] for m in said if m['role'] == 'function']
    calls = [[[c.name, json.loads(c.arguments)] for c in qwen.extract_tool(x)] for x in written]
    print(json.dumps({'said': said, 'system': r['_system'], 'tools': r['_tools'], 'calls': calls}))
'''

AXOLOTL = '''
import json, logging, os, sys, yaml
import axolotl.utils.data.sft as sft
from axolotl.utils.dict import DictDefault

from actionstudio.assets import smollm2_tokenizer
from actionstudio.render import CHATML_TOOLS
logging.disable(logging.WARNING)
os.chdir(sys.argv[1])
tok = smollm2_tokenizer(); tok.chat_template = CHATML_TOOLS
cfg = DictDefault(yaml.safe_load(open('axolotl.yaml')) | {'sequence_len': 10**6, 'seed': 1, 'dataset_num_proc': 1, 'dataset_keep_in_memory': True})
rows, _ = sft._load_and_process_single_dataset(cfg.datasets[0], cfg, tok, 'train', 1)
for r in rows: print(json.dumps({'text': tok.decode(r['input_ids']), 'trained': tok.decode([x for x in r['labels'] if x != -100])}))
'''


def loaded(code, folder, name):
    if importlib.machinery.PathFinder.find_spec(name, [TRAINERS] if TRAINERS else None) is None: pytest.skip(f'{name} is not installed where ACTIONSTUDIO_TRAINERS says (see the top of this file)')
    env = os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), TRAINERS]), 'HF_DATASETS_CACHE': str(folder/'cache'), 'HF_DATASETS_DISABLE_PROGRESS_BARS': '1',
                        'DISABLE_VERSION_CHECK': '1', 'AXOLOTL_DO_NOT_TRACK': '1', 'HF_HUB_OFFLINE': '1'}  # The first switches off LLaMA-Factory's own bounds on versions
    done = subprocess.run([sys.executable, '-c', code, str(folder)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]


def exported(tmp_path, source, format):
    if source == 'made': write(tmp_path/'runs.jsonl', MADE)
    elif not SHARED.exists(): pytest.skip('no ../shared/data here')
    else: convert_file(SHARED/source, tmp_path/'c'); os.replace(tmp_path/'c/data.jsonl', tmp_path/'runs.jsonl')
    report = export_for(tmp_path/'runs.jsonl', format, tmp_path/'out', name='runs')
    taken = [json.loads(line)['id'] for line in open(tmp_path/'out/data.jsonl')]
    runs = [json.loads(line) for line in open(tmp_path/'runs.jsonl')]
    assert len(taken) == report['records_out'] and report['records_in'] == len(runs)
    return tmp_path/'out', [r for r in runs if r['unique_trajectory_id'] in set(taken)]


@pytest.mark.parametrize('source', ['made', *SOURCES])
def test_llamafactory_reads_all_of_it(tmp_path, source):
    folder, runs = exported(tmp_path, source, 'llamafactory')
    rows = loaded(LLAMAFACTORY, folder, 'llamafactory')
    assert len(rows) == len(runs) > 0
    for row, run in zip(rows, runs):
        assert row['said'] and row['system'] == run['task_instruction'] + ''.join(m['content'] for m in run['conversation'][:1] if m['role'] == 'system')
        last = max(k for k, m in enumerate(run['conversation']) if m['role'] == 'assistant') + 1
        assert row['calls'] == [[[c['function']['name'], c['function']['arguments']] for c in m['tool_calls']] for m in run['conversation'][:last] if m.get('tool_calls')]
        assert [t['name'] for t in json.loads(row['tools'] or '[]')] == [t['function']['name'] for t in run['tools']]
        for m in run['conversation'][:last]:
            for text in (m.get('reasoning_content'), m['content'] if m['role'] in ('user', 'assistant') and not m.get('tool_calls') else None):
                assert not text or any(text in x['content'] for x in row['said'])


@pytest.mark.parametrize('source', ['made', *SOURCES])
def test_axolotl_trains_the_tokens_that_we_train(tmp_path, source):
    from actionstudio.assets import smollm2_tokenizer
    from actionstudio.encode import encode
    from actionstudio.render import CHATML_TOOLS, render
    from actionstudio.schema import Trajectory
    folder, runs = exported(tmp_path, source, 'axolotl')
    rows, tok = loaded(AXOLOTL, folder, 'axolotl'), smollm2_tokenizer()
    tok.chat_template = CHATML_TOOLS
    assert len(rows) == len(runs) > 0
    for row, t in zip(rows, map(Trajectory.from_dict, runs)):
        assert row['text'] == render(t, tok)
        empty = any(m.role == 'assistant' and not (m.content or m.calls) for m in t.conversation)  # axolotl does not train the end of an empty turn
        assert empty or row['trained'] == ''.join(tok.decode([i for i, m in zip(e.input_ids, e.loss_mask) if m]) for e in encode(t, tok))


def test_a_call_that_comes_late_in_a_large_file(tmp_path):
    plain, full = MADE
    write(tmp_path/'runs.jsonl', [plain | {"conversation": [{"role": "user", "content": 'x' * 3000}, plain['conversation'][1]]}] * 5000 + [full])
    for format, code in (('llamafactory', LLAMAFACTORY), ('axolotl', AXOLOTL)):
        export_for(tmp_path/'runs.jsonl', format, tmp_path/format, name='runs')
        rows = loaded(code, tmp_path/format, format)
        assert len(rows) == 5001 and 'ticker' in json.dumps(rows[-1])

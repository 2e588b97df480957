"A run that cannot go well stops with one line, before a step, and leaves what is there."
import json

import pytest

pytest.importorskip('torch')


def talk(k, **meta): return {"unique_trajectory_id": f'{k}', "task_instruction": "", "tools": [], "meta": {"source": "made", **meta},
                             "conversation": [{"role": "user", "content": f"Say {k}."}, {"role": "assistant", "content": f"word {k}"}]}


@pytest.fixture
def kit(model, tmp_path):
    "A model folder of one's own, a function that makes data, and one that makes runs"
    import shutil

    import torch
    from actionstudio.config import Run
    from actionstudio.encode_file import encode_file
    from transformers import AutoConfig, AutoModelForCausalLM
    shutil.copytree(model, tmp_path/'model')
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(tmp_path/'model')
    def data(name, records, **how):
        (tmp_path/f'{name}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
        encode_file(tmp_path/f'{name}.jsonl', tmp_path/name, tmp_path/'model', **how)
        return str(tmp_path/name)
    def run(data, **more): return Run(**dict(model=str(tmp_path/'model'), data=data, out=str(tmp_path/'out'), regime='lora', dtype='float32', row_tokens=256, lr=1e-3) | more)
    return tmp_path, data, run


def refused(run, match):
    from actionstudio.schema import InputError
    from actionstudio.sft import train_sft
    with pytest.raises(InputError, match=match) as e: train_sft(run)
    assert '\n' not in str(e.value)


def test_rows_for_evaluation(kit):
    here, data, run = kit
    marked = data('marked', [talk(1), talk(2, split='evaluation')], allow_evaluation=True)
    assert json.loads((here/'marked'/'certificate.json').read_text())['notes'] == {'evaluation_only': 1}
    refused(run(marked), '2: found a row that is marked evaluation only')
    assert not (here/'out').exists()
    from actionstudio.sft import train_sft
    report = train_sft(run(data('fine', [talk(1), talk(3)]), heldout=marked))  # To be measured they may be there
    assert report['best']['step'] == report['steps'] and (here/'out'/'checkpoints'/f"checkpoint-{report['steps']}"/'run.yaml').is_file()


def test_pairs_for_evaluation(kit):
    from actionstudio.dpo import train_dpo
    from actionstudio.schema import InputError
    here, _, run = kit
    answer = lambda text: [{"role": "assistant", "content": text}]
    (here/'pairs.jsonl').write_text(json.dumps(talk(1, split='evaluation') | {"conversation": talk(1)['conversation'][:1], "chosen": answer('a'), "rejected": answer('b')}) + '\n')
    with pytest.raises(InputError, match='1: found a pair that is marked evaluation only'): train_dpo(run(str(here/'pairs.jsonl'), objective='dpo'))


@pytest.mark.parametrize('what', ['pad', 'eos'])
def test_a_missing_token(kit, what):
    here, data, run = kit
    rows, file = data('rows', [talk(1), talk(2)]), here/'model'/'tokenizer_config.json'
    config = json.loads(file.read_text())
    config.pop(f'{what}_token')
    file.write_text(json.dumps(config))
    refused(run(rows), f'found no {what} token')


def test_a_stop_that_is_no_token(kit):
    from actionstudio.dataset import certificate_hash
    here, data, run = kit
    rows = data('rows', [talk(1), talk(2)])
    certificate = json.loads((here/'rows'/'certificate.json').read_text())
    certificate['settings']['stops'] = ['<|fin|>']
    (here/'rows'/'certificate.json').write_text(json.dumps(certificate | {'hash': certificate_hash(certificate)}))
    refused(run(rows), "found no token '<|fin|>'")


def test_a_batch_in_which_nothing_trains(kit):
    import msgspec
    from actionstudio.dataset import certificate_hash, load_encoded, save_encoded
    from actionstudio.store import fingerprint
    here, data, run = kit
    rows = data('rows', [talk(1), talk(2)])
    untrained = [msgspec.structs.replace(r, spans=[msgspec.structs.replace(s, trained=False) for s in r.spans]) if k else r for k, r in enumerate(load_encoded(here/'rows'/'encoded.parquet'))]
    save_encoded(here/'rows'/'encoded.parquet', untrained)
    certificate = json.loads((here/'rows'/'certificate.json').read_text()) | {'rows_file': fingerprint(here/'rows'/'encoded.parquet')}
    (here/'rows'/'certificate.json').write_text(json.dumps(certificate | {'hash': certificate_hash(certificate)}))
    refused(run(rows, row_tokens=max(map(len, untrained))), 'found no trained token')


def test_going_on_with_other_weights(kit):
    import torch
    from actionstudio.sft import train_sft
    from transformers import AutoModelForCausalLM
    here, data, run = kit
    rows = data('rows', [talk(k) for k in range(6)])
    class Enough(Exception): pass
    def stop(line):
        if line['step'] == 2: raise Enough
    with pytest.raises(Enough): train_sft(run(rows, row_tokens=40, save_every=1), stop)
    kept = sorted(p.name for p in (here/'out'/'checkpoints').glob('checkpoint-*'))
    model = AutoModelForCausalLM.from_pretrained(here/'model')
    with torch.no_grad(): model.lm_head.weight += 1e-3
    model.save_pretrained(here/'model')
    refused(run(rows, row_tokens=40, save_every=1), 'found weights .*on which the run in .* began')
    assert kept and kept == sorted(p.name for p in (here/'out'/'checkpoints').glob('checkpoint-*'))


def test_the_command_line_says_one_line(kit, actionstudio):
    from actionstudio.config import to_yaml
    here, data, run = kit
    marked = data('marked', [talk(2, split='evaluation')], allow_evaluation=True)
    (here/'run.yaml').write_text(to_yaml(run(marked)))
    code, out, err = actionstudio('train', here/'run.yaml')
    assert code == 2 and err.count('\n') == 1 and 'marked evaluation only' in err

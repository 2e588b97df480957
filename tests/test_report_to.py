"What TensorBoard is told, and a name that nobody has."
import json

import pytest

pytest.importorskip('torch')


def test_tensorboard_gets_rates_and_parts_of_the_loss(model, tmp_path):
    import shutil

    from actionstudio.config import Run
    from actionstudio.encode_file import encode_file
    from actionstudio.schema import InputError
    from actionstudio.sft import train_sft
    from transformers import AutoConfig, AutoModelForCausalLM
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator', reason='tensorboard is not installed')
    shutil.copytree(model, tmp_path/'model')
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(tmp_path/'model')
    runs = [{"unique_trajectory_id": str(k), "task_instruction": "", "tools": [], "meta": {"source": "odd" if k % 2 else "even"}, "conversation": [{"role": "user", "content": f"Say {k}."}, {"role": "assistant", "content": f"word {k}"}]} for k in range(8)]
    (tmp_path/'d.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in runs))
    encode_file(tmp_path/'d.jsonl', tmp_path/'rows', tmp_path/'model')
    run = dict(model=str(tmp_path/'model'), data=str(tmp_path/'rows'), regime='full', dtype='float32', row_tokens=128)
    train_sft(Run(**run, out=str(tmp_path/'out'), report_to=['tensorboard'], log_every=2))
    lines = [json.loads(x) for x in (tmp_path/'out'/'metrics.jsonl').read_text().splitlines()]
    assert lines[-1]['loss_by_source'].keys() == {'odd', 'even'}
    [file] = (tmp_path/'out').rglob('events.out.*')
    found = events.EventAccumulator(str(file.parent)); found.Reload()
    assert {'train/loss', 'train/tokens_per_second', 'train/loss_by_field/content', 'train/loss_by_source/odd', 'train/memory_gib'} <= set(found.Tags()['scalars'])
    assert found.Scalars('train/loss_by_field/content')[-1].value == pytest.approx(lines[-1]['loss_by_field']['content'])
    with pytest.raises(InputError, match='report_to: found smoke-signals'): train_sft(Run(**run, out=str(tmp_path/'other'), report_to=['smoke-signals']))

"Bad input: exit 2, one line, and nothing half-made."
import json
import os
import subprocess

import pytest

RUN = {"unique_trajectory_id": "a", "task_instruction": "", "tools": [],
       "conversation": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def write(path, *records):
    path.write_text(''.join(json.dumps(r) + '\n' for r in records))
    return path


def one_line(result, *words):
    code, _, err = result
    assert code == 2 and err.count('\n') == 1 and err.startswith('actionstudio: '), err
    for w in words: assert w in err, err


def test_missing_file_and_directory(actionstudio, tmp_path):
    one_line(actionstudio('convert', tmp_path/'no.jsonl', '-o', tmp_path/'x'), 'no.jsonl', 'found nothing')
    one_line(actionstudio('convert', tmp_path, '-o', tmp_path/'x'), 'found a directory')
    assert not (tmp_path/'x').exists()


def test_a_broken_line_costs_that_line(actionstudio, tmp_path):
    (tmp_path/'log.jsonl').write_text(json.dumps(RUN) + '\n{"conversation": [\n' + json.dumps(RUN | {"unique_trajectory_id": "b"}) + '\n')
    code, _, _ = actionstudio('convert', tmp_path/'log.jsonl', '-o', tmp_path/'data')
    report, rejected = json.loads((tmp_path/'data/report.json').read_text()), json.loads((tmp_path/'data/rejected.jsonl').read_text())
    assert (code, report['records_in'], report['records_out'], rejected['place']) == (0, 3, 2, 'log.jsonl:2')


def test_a_template_that_raises_is_named_with_its_message(actionstudio, tmp_path, model):
    data = write(tmp_path/'d.jsonl', RUN, RUN | {"unique_trajectory_id": "b", "conversation": RUN["conversation"] + [{"role": "system", "content": "late"}, *RUN["conversation"]]})
    (tmp_path/'t.jinja').write_text("{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('System first') }}{% endif %}"
                                    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    code, _, err = actionstudio('encode', data, '--tokenizer', model, '--chat-template', tmp_path/'t.jinja', '-o', tmp_path/'e')
    removed = json.loads((tmp_path/'e/removed.jsonl').read_text())
    assert code == 1 and 'removed' in err
    assert removed['reason'] == 'template_error' and 'conversation[2]' in removed['message'] and 'System first' in removed['message']
    assert json.loads((tmp_path/'e/report.json').read_text())['certified'] == 1


def test_a_template_that_is_no_jinja(actionstudio, tmp_path, model):
    (tmp_path/'t.jinja').write_text('{% for %}')
    one_line(actionstudio('encode', write(tmp_path/'d.jsonl', RUN), '--tokenizer', model, '--chat-template', tmp_path/'t.jinja', '-o', tmp_path/'e'), 'line 1', 'no Jinja template')
    assert not (tmp_path/'e').exists()


def test_a_model_folder_without_tokenizer(actionstudio, tmp_path):
    (tmp_path/'m').mkdir()
    (tmp_path/'m/config.json').write_text('{}')
    data = write(tmp_path/'d.jsonl', RUN)
    one_line(actionstudio('encode', data, '--tokenizer', tmp_path/'m', '-o', tmp_path/'e'), 'found no tokenizer')
    one_line(actionstudio('evaluate', tmp_path/'m', data, '-o', tmp_path/'s'), 'found no tokenizer')


def test_a_model_folder_without_weights(actionstudio, tmp_path):
    (tmp_path/'m').mkdir()
    for f in ('config.json', 'tokenizer.json'): (tmp_path/'m'/f).write_text('{}')
    data = write(tmp_path/'d.jsonl', RUN)
    (tmp_path/'run.yaml').write_text(f'model: {tmp_path}/m\ndata: {tmp_path}\nout: {tmp_path}/o\n')
    one_line(actionstudio('train', tmp_path/'run.yaml'), 'found no model.safetensors')
    one_line(actionstudio('evaluate', tmp_path/'m', data, '-o', tmp_path/'s'), 'found no model.safetensors')


def test_a_file_of_which_nothing_can_be_converted(actionstudio, tmp_path):
    (tmp_path/'t.csv').write_text('a,b\n' * 5)
    code, out, err = actionstudio('convert', tmp_path/'t.csv', '-o', tmp_path/'x')
    assert code == 1 and 'none of 5 records was converted' in err and err.count('\n') == 1
    assert [line.split(': ')[0] for line in out.splitlines()[:3]] == ['t.csv:1', 't.csv:2', 't.csv:3'] and '2 more in' in out


def test_an_output_of_other_options_says_which(actionstudio, tmp_path):
    data = write(tmp_path/'d.jsonl', RUN)
    assert actionstudio('convert', data, '-o', tmp_path/'x')[0] == 0
    one_line(actionstudio('convert', data, '-o', tmp_path/'x', '--limit', '1'), 'the same command with another `limit`')
    one_line(actionstudio('check', data, '-o', tmp_path/'x'), 'another command (convert)')


def test_no_command_shows_the_help(actionstudio):
    code, _, err = actionstudio()
    assert code == 2 and err.startswith('Usage: actionstudio') and 'try --help' not in err


def test_typos_name_what_was_meant(actionstudio, tmp_path):
    data = write(tmp_path/'d.jsonl', RUN)
    one_line(actionstudio('convert', data, '--format', 'unified3', '-o', tmp_path/'x'), 'did you mean')
    one_line(actionstudio('mix', data, '-o', tmp_path/'x', '--held-out', '1.5'), '--held-out: found 1.5')
    one_line(actionstudio('chek', data), "Did you mean 'check'")
    (tmp_path/'run.yaml').write_text('model: m\ndata: d\nout: o\nlrr: 1e-4\n')
    one_line(actionstudio('train', tmp_path/'run.yaml'), 'run.yaml:4', 'did you mean `lr`')


def test_a_typo_does_not_show_a_traceback_unless_asked(actionstudio, tmp_path):
    assert 'Traceback' in actionstudio('convert', tmp_path/'no.jsonl', '-o', tmp_path/'x', '--debug')[2]


def test_no_space_leaves_no_half_file(actionstudio, tmp_path):
    disk = tmp_path/'disk'
    disk.mkdir()
    mount = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', str(disk)], capture_output=True, text=True) if os.geteuid() == 0 else None
    if mount is None or mount.returncode: pytest.skip('a small disk can be mounted by root only')
    try:
        data = write(tmp_path/'big.jsonl', *[RUN | {"unique_trajectory_id": str(k), "noise": os.urandom(500).hex()} for k in range(1000)])
        one_line(actionstudio('convert', data, '-o', disk/'data'), 'No space left on device')
        assert list(disk.iterdir()) == []
    finally: subprocess.run(['umount', str(disk)], check=True)


def test_ctrl_c_is_answered(monkeypatch, capsys, tmp_path):
    from actionstudio import cli
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr('actionstudio.check_file.check_file', stop)
    assert cli.run_command(['check', str(write(tmp_path/'data.jsonl', RUN)), '--out', str(tmp_path/'out')]) == 130
    assert capsys.readouterr().err.endswith('actionstudio: stopped\n')

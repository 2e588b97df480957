"The floors: what imports without torch, and what names every notebook."
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

LIGHT = ['schema', 'store', 'infer', 'spread', 'convert', 'formats.chat', 'formats.gold', 'formats.unified', 'decisions', 'duplicates', 'rules', 'check_file', 'ask', 'append', 'agreement', 'case', 'critique', 'rule_judge', 'keep', 'audit', 'critic_data', 'compare', 'record', 'split', 'where', 'recipe', 'interleave', 'contamination', 'mix', 'count', 'assets', 'render', 'template', 'tokens', 'values', 'encode', 'certify', 'length', 'pack',
         'dataset', 'encode_file',
         'sheet', 'view', 'index', 'pictures', 'ring', 'verifier', 'app', 'config', 'plan', 'parse', 'cli', 'cluster', 'cost', 'engines', 'launch', 'steps']


@pytest.mark.parametrize('module', LIGHT)
def test_imports_without_torch(module):
    code = f'import sys, actionstudio.{module}; sys.exit(any(m in sys.modules for m in ("torch", "trl", "peft", "accelerate")))'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_schema_needs_nothing_heavy():
    code = 'import sys, actionstudio.schema; print(*sorted(m for m in ("pandas", "pyarrow", "transformers", "IPython") if m in sys.modules))'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == ''


def test_quarto_names_every_notebook_in_order():
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar']['contents']
    named = [n for part in site for n in (part['contents'] if isinstance(part, dict) else [part])]
    there = {str(p.relative_to(ROOT)) for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    assert set(named) == there and len(named) == len(there)
    numbered = [n for n in named if n.split('/')[1][0].isdigit()]
    assert numbered == sorted(numbered)


def test_base_install_never_names_torch():
    from configparser import ConfigParser
    c = ConfigParser(delimiters=['='])
    c.read(ROOT/'settings.ini')
    assert not {'torch', 'trl', 'peft', 'accelerate', 'deepspeed', 'bitsandbytes'} & {r.split('>')[0] for r in c['DEFAULT']['requirements'].split()}


def test_every_step_is_a_command():
    from typer.main import get_command

    from actionstudio.cli import app
    assert {'demo', 'formats', 'convert', 'export', 'check', 'critique', 'mix', 'encode', 'view', 'plan', 'train', 'merge', 'evaluate', 'serve', 'launch', 'bench'} <= set(get_command(app).commands)

"What several tests need."
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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

"Export, clean and render; fail when that changes a file, because then the repository was not in sync."
import hashlib
import subprocess
import sys
from pathlib import Path

root = Path(__file__).parent.parent
bin = Path(sys.executable).parent


def state() -> dict[str, str]:
    files = [p for folder in ('actionstudio', 'nbs') for p in (root/folder).rglob('*')] + [root/'README.md', root/'pyproject.toml']
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
            if p.is_file() and '__pycache__' not in p.parts and '.ipynb_checkpoints' not in p.parts}


def main() -> int:
    before = state()
    for command in ([bin/'nbdev_export'], [bin/'nbdev_clean'], [sys.executable, 'tools/readme.py']):
        subprocess.run([str(c) for c in command], cwd=root, check=True)
    after = state()
    changed = sorted(f for f in before.keys() | after.keys() if before.get(f) != after.get(f))
    for f in changed: print(f'not in sync: {f} (now updated; look at the change and commit it)', file=sys.stderr)
    return bool(changed)


if __name__ == '__main__':
    sys.exit(main())

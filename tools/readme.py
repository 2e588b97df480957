"Write README.md from nbs/index.ipynb, without needing quarto."
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent


def visible(cell) -> bool:
    return not cell.source.lstrip().startswith('#| hide')


def main():
    nb = nbformat.read(root/'nbs'/'index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if visible(c)]
    nb.metadata['language_info'] = {'name': 'python'}
    text, _ = MarkdownExporter().from_notebook_node(nb)
    head = '<!-- Made from nbs/index.ipynb by tools/readme.py; edit the notebook. -->\n\n'
    (root/'README.md').write_text(head + re.sub(r'\]\((?!\w+:)([\w/]+)\.html\)', r'](nbs/\1.ipynb)', text.strip().replace('](images/', '](nbs/images/')) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()

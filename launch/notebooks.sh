#!/usr/bin/env bash
# Executes the notebooks and writes each beside its program, outputs included.
# Usage: launch/notebooks.sh [NOTEBOOK.py...]   (default: all of notebooks/)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

ensure_environment notebooks
[ $# -gt 0 ] || set -- notebooks/*.py
for program in "$@"; do
  "$python" -m jupytext --quiet --to ipynb --execute "$program"
  # What is shown as HTML need not be there as text as well: a verdict's is as long as its images. Live progress needs a
  # kernel to be seen.
  "$python" - "${program%.py}.ipynb" <<'PROGRAM'
import base64, io, json, pathlib, sys

from PIL import Image


def small(png):
    """The same picture in a palette of 64 colours, a third of the size."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


path = pathlib.Path(sys.argv[1])
notebook = json.loads(path.read_text())
for cell in notebook["cells"]:
    for output in cell.get("outputs", ()):
        if "text/html" in output.get("data", {}):
            output["data"].pop("text/plain", None)
        if "image/png" in output.get("data", {}):
            output["data"]["image/png"] = small(output["data"]["image/png"])
    if "outputs" in cell:
        live = "application/vnd.jupyter.widget-view+json"
        cell["outputs"] = [output for output in cell["outputs"] if live not in output.get("data", {})]
notebook["metadata"].pop("widgets", None)
path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
PROGRAM
done

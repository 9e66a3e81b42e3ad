"""The floors that fio cannot measure: what the link's round trip costs without the rest."""

import os
import shutil

from .processes import Failure, run

SECONDS = 5
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def measure(bench):
    """The UDP and QUIC round trips on the reactor; left out, with a word, where there is no cargo to build them."""
    if shutil.which("cargo") is None:
        return [{"name": "UDP and QUIC round trip", "text": "not measured: cargo is not installed"}]
    argv = ["cargo", "bench", "--quiet", "--manifest-path", f"{ROOT}/Cargo.toml", "--bench", "quic", "--", str(SECONDS)]
    try:
        text = run(argv, seconds_max=900)
    except Failure as failure:
        text = f"not measured: {failure}"
    return [{"name": "UDP and QUIC round trip on the reactor", "text": text}]

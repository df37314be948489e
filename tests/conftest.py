import os
import shutil

import pytest
from checkpoints import random_weights, sizes, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small random checkpoint folder: (folder, config, weights)."""
    config = sizes()
    weights = random_weights(config)
    return write_checkpoint(tmp_path_factory.mktemp("random"), config, weights), config, weights


GOOD, BAD = "fine lovely great warm witty".split(), "dull awful cold flat stale".split()


@pytest.fixture
def place(tmp_path, checkpoint, monkeypatch):
    """A working folder with a random model m and a small data set d; nothing is written elsewhere."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint[0], "m")
    os.mkdir("d")
    for split, rows in (("train", 60), ("dev", 12)):
        lines = [f"{(BAD, GOOD)[i % 2][i // 2 % 5]} {split[0]}{i}\t{i % 2}" for i in range(rows)]
        (tmp_path / "d" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]))
    return tmp_path

import pytest
from checkpoints import random_weights, sizes, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small random checkpoint folder: (folder, config, weights)."""
    config = sizes()
    weights = random_weights(config)
    return write_checkpoint(tmp_path_factory.mktemp("random"), config, weights), config, weights

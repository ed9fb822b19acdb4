"""Weights in a pickle are read where they are arrays, and nothing in the file is run."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from pseudolabel.checkpointer import AtomicCheckpointer
from pseudolabel.checkpoints import check_pickle
from pseudolabel.errors import DataError
from pseudolabel.evaluation import load_complete


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def weights(**more):
    rows = OrderedDict(weight=np.ones((2, 3), np.float32), bias=np.zeros(2, np.float32))
    return {"model": rows, "__author__": "somebody", **more}


# What a file holds, as a function of the marker that code would make, and what is said of it.
BAD = {
    "code in place of weights": (lambda path: {**weights(), "model": Evil(path)}, "it refers to"),
    "code beside the weights": (lambda path: weights(extra=[Evil(path)]), "it refers to"),
    "code as the whole": (Evil, "it refers to"),
    "a list": (lambda path: [1], "no table"),
    "a number for the table": (lambda path: {"model": 3}, "no table"),
}


@pytest.mark.parametrize(("content", "said"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_that_is_more_than_weights_is_refused(tmp_path, content, said, protocol):
    path, marker = tmp_path / "zoo.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps(content(marker), protocol=protocol))
    with pytest.raises(pickle.UnpicklingError, match=said):
        check_pickle(path)
    for address in (path, f"{path}?matching_heuristics=True"):
        with pytest.raises(DataError, match="cannot be loaded"):
            load_complete(torch.nn.Linear(3, 2), str(address))
        # A training starts from MODEL.WEIGHTS in this way.
        with pytest.raises(DataError, match="cannot be loaded"):
            AtomicCheckpointer(torch.nn.Linear(3, 2), str(tmp_path)).load(str(address))
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_of_weights_is_loaded(tmp_path, protocol):
    path, model = tmp_path / "zoo.pkl", torch.nn.Linear(3, 2)
    path.write_bytes(pickle.dumps(weights(steps=np.int64(3)), protocol=protocol))
    load_complete(model, str(path))
    assert (model.weight == 1).all()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="cannot be loaded"):
        load_complete(model, str(path))

"""The evaluator of both networks hands out predictions and collects numbers."""

from collections import OrderedDict

from pais.evaluation import NETWORKS, NetworkEvaluator


class Recorder:
    """An evaluator that counts what it is given."""

    def __init__(self, rank=0):
        self.rank, self.seen = rank, None

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [output["instances"] for output in outputs]

    def evaluate(self):
        return None if self.rank else OrderedDict(segm={"AP": sum(self.seen)})


def test_numbers_of_both_networks_and_of_the_one_that_answers():
    evaluator = NetworkEvaluator({name: Recorder() for name in NETWORKS}, "teacher")
    evaluator.reset()
    evaluator.process([{}, {}], [{"teacher": 3, "student": 1}, {"teacher": 4, "student": 1}])
    assert evaluator.evaluate() == {
        "segm": {"AP": 7},
        "teacher/segm": {"AP": 7},
        "student/segm": {"AP": 2},
    }
    other = NetworkEvaluator({name: Recorder(rank=1) for name in NETWORKS}, "student")
    assert other.evaluate() is None

"""Both networks of a run evaluated side by side, by any evaluator of single predictions."""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from pseudolabel.evaluators import evaluator_from_config

NETWORKS = ("teacher", "student")


class NetworkEvaluator(DatasetEvaluator):
    """Gives each evaluator the predictions of its network.

    Args:
        evaluators: by the key of the network in the model's outputs.
        answer: the key of the one whose numbers stand under their plain names too.
    """

    def __init__(self, evaluators: Mapping[str, DatasetEvaluator], answer: str):
        self.evaluators, self.answer = dict(evaluators), answer

    def reset(self) -> None:
        for evaluator in self.evaluators.values():
            evaluator.reset()

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Takes in a batch.

        Args:
            inputs: samples.
            outputs: per sample an `Instances` under the key of each network.
        """
        for network, evaluator in self.evaluators.items():
            evaluator.process(inputs, [{"instances": output[network]} for output in outputs])

    def evaluate(self) -> OrderedDict | None:
        """{task: numbers} of the network that answers, then {"network/task": numbers} of each.

        None but on the main process.
        """
        found = {name: evaluator.evaluate() for name, evaluator in self.evaluators.items()}
        if found[self.answer] is None:
            return None
        results = OrderedDict(found[self.answer])
        for network, tasks in found.items():
            results.update({f"{network}/{task}": numbers for task, numbers in tasks.items()})
        return results


def network_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str) -> NetworkEvaluator:
    """COCO's or LVIS's AP of teacher and student; each writes into a folder of its own.

    Raises:
        DataError: as of `pseudolabel.evaluators.evaluator_from_config`.
    """
    first = evaluator_from_config(cfg, dataset_name, output_dir)
    evaluators = {}
    for network in NETWORKS:
        # The ground truth, which is large, is shared.
        evaluators[network] = copy.copy(first)
        evaluators[network].output_dir = Path(output_dir, network)
        evaluators[network].reset()
    return NetworkEvaluator(evaluators, cfg.MODEL.PAIS.TEST.NETWORK)

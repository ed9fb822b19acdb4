"""Training hooks that any method may use."""

from detectron2.engine import HookBase
from detectron2.utils import comm

from pseudolabel.ema import unwrap
from pseudolabel.loader import mix_seed, seed_everything


class StepSeed(HookBase):
    """Seeds every iteration by (seed, iteration, rank), so that resuming needs no saved generator.

    Whatever a model draws (proposal sampling, dropout) is then the same in a run of 20 iterations
    and in one of 10 that is resumed for 10 more.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self) -> None:
        # The trailing 1 keeps these streams apart from the loader's (seed, position).
        seed_everything(mix_seed(self.seed, self.trainer.iter, comm.get_rank(), 1))


class TeacherUpdate(HookBase):
    """Calls the model's `update_teacher()` after every optimizer step (EMA teachers)."""

    def after_step(self) -> None:
        unwrap(self.trainer.model).update_teacher()

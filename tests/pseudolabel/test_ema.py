"""EMA of a student in a teacher."""

import copy

import pytest
import torch
from torch import nn

from pseudolabel.ema import init_teacher, unwrap, update_ema


class _Student(nn.Module):
    """Parameters of two dtypes and shapes, a float, an integer and a non-persistent buffer."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
        self.scale = nn.Parameter(torch.randn(()))
        self.wide = nn.Parameter(torch.randn(4, dtype=torch.float64))
        self.tied = self.wide
        self.register_buffer("cache", torch.randn(2), persistent=False)


class _Reversed(nn.Module):
    """The same names as `_Student`, registered in another order."""

    def __init__(self, other):
        super().__init__()
        self.register_buffer("cache", other.cache.clone())
        self.wide = nn.Parameter(other.wide.detach().clone())
        self.tied = self.wide
        self.scale = nn.Parameter(other.scale.detach().clone())
        self.body = copy.deepcopy(other.body)


def _pair():
    teacher, student = _Student(1), _Student(2)
    student.body(torch.randn(2, 2, 5, 5))  # moves running statistics and the integer counter
    return teacher, student


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.996, 1.0])
def test_naive_twin(momentum):
    teacher, student = _pair()
    before = {name: value.detach().clone() for name, value in teacher.named_parameters()}
    other = {name: value.detach().clone() for name, value in student.named_parameters()}
    update_ema(teacher, student, momentum)
    for name, value in teacher.named_parameters():
        for got, old, new in zip(
            value.flatten().tolist(),
            before[name].flatten().tolist(),
            other[name].flatten().tolist(),
        ):
            assert got == pytest.approx(momentum * old + (1 - momentum) * new, abs=1e-6)
    for name, value in student.named_parameters():
        assert torch.equal(value, other[name])  # the student is only read


def test_buffers_are_copied_whatever_their_dtype():
    teacher, student = _pair()
    update_ema(teacher, student, 0.9)
    assert student.body[1].num_batches_tracked == 1
    for name, value in teacher.named_buffers():
        assert torch.equal(value, dict(student.named_buffers())[name])


def test_pairs_by_name_not_by_position():
    teacher, student = _pair()
    twin = copy.deepcopy(teacher)
    shuffled = _Reversed(student)
    update_ema(teacher, student, 0.5)
    update_ema(twin, shuffled, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), twin.parameters()))


def test_many_updates_converge_to_a_still_student():
    teacher, student = _pair()
    for _ in range(200):
        update_ema(teacher, student, 0.9)
    for a, b in zip(teacher.parameters(), student.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


def test_init_copies_and_freezes():
    teacher, student = _pair()
    init_teacher(teacher, student)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(teacher.buffers(), student.buffers()))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    with torch.no_grad():
        student.scale.add_(1.0)
    assert not torch.equal(teacher.scale, student.scale)  # a copy, not the same storage


def test_update_keeps_the_tensors_of_the_teacher():
    teacher, student = _pair()
    init_teacher(teacher, student)
    held = teacher.state_dict(keep_vars=True)
    student.scale.data.add_(1.0)
    update_ema(teacher, student, 0.5)
    assert held["scale"] is teacher.scale
    assert teacher.scale.grad_fn is None


def test_lower_precision_students_are_averaged_in_the_teachers():
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    old = teacher.weight.detach().clone()
    student.bfloat16()
    update_ema(teacher, student, 0.9)
    assert teacher.weight.dtype == torch.float32
    assert torch.allclose(teacher.weight, 0.9 * old + 0.1 * student.weight.float(), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "extra", nn.Parameter(torch.zeros(1))), "parameters: extra"),
        (lambda m: m.register_buffer("counter", torch.zeros(1)), "buffers: counter"),
        (lambda m: setattr(m, "scale", nn.Parameter(torch.zeros(3))), r"scale \(\) / \(3,\)"),
        (lambda m: delattr(m, "scale"), "parameters: scale"),
    ],
)
def test_differences_are_named(change, message):
    teacher, student = _pair()
    change(student)
    for use in (lambda: init_teacher(teacher, student), lambda: update_ema(teacher, student, 0.9)):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_refused_update_changes_nothing():
    teacher, student = _pair()
    student.register_buffer("counter", torch.zeros(1))
    before = copy.deepcopy(teacher.state_dict())
    with pytest.raises(ValueError, match="counter"):
        update_ema(teacher, student, 0.5)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_momentum_out_of_range(momentum):
    with pytest.raises(ValueError, match="momentum"):
        update_ema(*_pair(), momentum)


def test_wrapped_modules(tmp_path):
    teacher, student = _pair()
    reference = copy.deepcopy(teacher)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(student)
        assert unwrap(wrapped) is student
        update_ema(teacher, wrapped, 0.9)
    finally:
        torch.distributed.destroy_process_group()
    update_ema(reference, student, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), reference.parameters()))

"""A teacher's part in the loss, what it is shown, what is remembered of it, and that nothing of it stays."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import log_softmax, softmax
from torch import nn
from torch.nn import functional as F

from vitrail.config import Preprocess
from vitrail.errors import ConfigError
from vitrail.models import Model
from vitrail.optim import create_optimizer
from vitrail.runtime.precision import Precision
from vitrail.tasks import Classification
from vitrail.training import Distillation, RememberingTeacher, RepeatingBatches, Teacher, TrainPlan, TrainState, steps
from vitrail.training.distillation import Answers, class_order, features_distance

TASK = Classification(3, label_smoothing=0.1)
CLASSES = ("a", "b", "c")
PLAIN = Preprocess(image_size=(4, 4))
IMAGENET = Preprocess(image_size=(4, 4), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Tiny(Model):
    """Has pooled features, a head, and a norm whose buffers change in training mode."""

    def __init__(self, num_features: int = 6, num_inputs: int = 12) -> None:
        super().__init__()
        self.num_classes, self.num_features = 3, num_features
        self.embed = nn.Linear(num_inputs, num_features)
        self.norm = nn.BatchNorm1d(num_features)
        self.head = nn.Linear(num_features, 3)

    def intermediates(self, images):
        yield "pooled", self.norm(self.embed(images.flatten(1))).tanh()


class Fixed:
    """A teacher that says the same whatever it is shown, and counts how often it is asked."""

    def __init__(self, answers: Answers) -> None:
        self.said = answers
        self.asked = 0

    def answers(self, batch) -> Answers:
        self.asked += 1
        return self.said


@pytest.fixture
def make_teacher(fp32):
    def make(model=None, *, classes=CLASSES, preprocess=PLAIN, student=PLAIN, precision=fp32, **options) -> Teacher:
        torch.manual_seed(7)
        return Teacher(
            model or Tiny(num_inputs=48),
            classes,
            preprocess,
            student_classes=CLASSES,
            student_preprocess=student,
            precision=precision,
            **options,
        )

    return make


@pytest.fixture
def make_student(make_teacher):
    """A state and its objective, features included."""

    def make(seed: int = 0) -> tuple[TrainState, Distillation]:
        torch.manual_seed(seed)
        model, projection = Tiny(5), nn.Linear(5, 6, bias=False)
        optimizer = create_optimizer(model, "adamw", lr=0.01, weight_decay=0.05)
        optimizer.add_param_group({"params": [projection.weight], "param_names": ["projection"], "weight_decay": 0.05})
        objective = Distillation(TASK, make_teacher(with_features=True), projection=projection, features_weight=0.5)
        return TrainState(model=model, optimizer=optimizer, companion=projection), objective

    return make


def some_logits(*seeds: int) -> list[torch.Tensor]:
    return [3 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in seeds]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_soft_loss_and_its_gradient_are_those_of_the_formula(temperature):
    student, teacher = some_logits(0, 1)
    student.requires_grad_()
    loss = TASK.answers_loss(student, teacher, "soft", temperature)
    (gradient,) = torch.autograd.grad(loss, student)
    ours, theirs = student.detach().numpy() / temperature, teacher.numpy() / temperature
    p, q = softmax(theirs, axis=1), softmax(ours, axis=1)
    kl = (p * (log_softmax(theirs, axis=1) - log_softmax(ours, axis=1))).sum(axis=1).mean()
    # By hand: the derivative of KL is (q - p) / T for each image, and T^2 / B stands before it. Seen: 2e-16.
    np.testing.assert_allclose(loss.item(), temperature**2 * kl, rtol=1e-12)
    np.testing.assert_allclose(gradient.numpy(), temperature * (q - p) / 5, atol=1e-14)


def test_in_the_limit_of_a_high_temperature_the_logits_themselves_are_compared():
    """Hinton et al., equation 4, times T^2; without that factor the gradient would vanish."""
    student, teacher = some_logits(0, 1)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(TASK.answers_loss(student, teacher, "soft", 1e4), student)
    difference = (student - teacher).detach()
    expected = (difference - difference.mean(dim=1, keepdim=True)) / 3 / 5
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-3)  # Seen: 3e-4 at T = 1e4, 3e-5 at 1e5


def test_a_student_that_agrees_has_no_soft_loss():
    (logits,) = some_logits(0)
    assert TASK.answers_loss(logits, logits + 7.0, "soft", 2.0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_weight_is_the_share_of_the_teacher(batches, mode, weight):
    batch = next(batches().epoch(0))
    student, teacher = (logits[:4].float() for logits in some_logits(0, 1))
    loss, logits = Distillation(TASK, Fixed(Answers(teacher)), mode=mode, weight=weight, temperature=2.0).loss(
        student, batch
    )
    labels = F.cross_entropy(student, batch.targets, label_smoothing=0.1)
    hard = F.cross_entropy(student, teacher.argmax(dim=1))  # its labels are not smoothed
    answers = TASK.answers_loss(student, teacher, "soft", 2.0) if mode == "soft" else hard
    assert loss.item() == pytest.approx(((1 - weight) * labels + weight * answers).item(), rel=1e-6)
    assert logits is student


def test_the_accuracy_is_that_against_the_labels(batches):
    batch = next(batches().epoch(0))
    objective = Distillation(TASK, Fixed(Answers(F.one_hot((batch.targets + 1) % 3, 3).float())))
    assert objective.correct(F.one_hot(batch.targets, 3).float(), batch.targets).all()


def test_features_are_compared_by_direction_alone():
    (features,) = some_logits(0)
    assert features_distance(5 * features, features).item() == pytest.approx(0, abs=1e-12)
    assert features_distance(-features, features).item() == pytest.approx(4)
    unit, other = (F.normalize(each, dim=1) for each in some_logits(0, 1))
    expected = (unit - other).square().sum(dim=1).mean()  # the normalised squared error of BYOL
    assert features_distance(*some_logits(0, 1)).item() == pytest.approx(expected.item())


def test_the_projection_learns_and_is_only_in_the_state_of_the_training(make_student, batches, fp32, tmp_path):
    state, objective = make_student()
    before = state.companion.weight.detach().clone()
    names = set(state.model.state_dict())
    losses = [report.loss for report in steps(state, objective, batches((8, 8)), TrainPlan(epochs=40), fp32)]
    assert not torch.equal(state.companion.weight, before)
    assert losses[-1] < losses[0]
    assert set(state.model.state_dict()) == names
    state.save(tmp_path / "state.safetensors")
    other, _ = make_student(seed=1)
    other.load(tmp_path / "state.safetensors")
    assert torch.equal(other.companion.weight, state.companion.weight)


@pytest.mark.parametrize("before", [2, 4, 7], ids=["mid-epoch", "epoch end", "second epoch"])
def test_with_a_teacher_and_its_features_a_training_is_resumed_bit_for_bit(
    make_student, batches, fp32, tmp_path, before
):
    plan = TrainPlan(epochs=3)

    def run(state, objective, count):
        objective = Distillation(**{**vars(objective), "teacher": RememberingTeacher(objective.teacher)})
        running = steps(state, objective, RepeatingBatches(batches(), 2), plan, fp32)
        return [next(running).loss for _ in range(count)]

    whole, objective = make_student()
    losses = run(whole, objective, before + 4)
    first, objective = make_student()
    run(first, objective, before)
    first.save(tmp_path / "state.safetensors")
    second, objective = make_student(seed=99)
    second.load(tmp_path / "state.safetensors")
    assert run(second, objective, 4) == losses[before:]
    for mine, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_teacher_is_never_changed_and_never_in_training_mode(make_teacher, batches, fp32):
    model = Tiny(num_inputs=48).train()
    teacher = make_teacher(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    state = TrainState(model=Tiny(5), optimizer=None)
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=0.1)
    list(steps(state, Distillation(TASK, teacher), batches(), TrainPlan(epochs=2), fp32))
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_teacher_computes_in_the_precision_of_the_run(make_teacher, batches):
    model, seen = Tiny(num_inputs=48), []
    model.head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    answers = make_teacher(model, precision=Precision(torch.bfloat16, "cpu", "bf16.")).answers(next(batches().epoch(0)))
    assert seen == [torch.bfloat16]
    assert answers.logits.dtype == torch.float32


def test_a_student_learns_from_a_teacher_what_no_label_tells(make_teacher, batches, fp32):
    """The labels are drawn at random; the share of the teacher is all."""
    teacher = make_teacher()
    for mode in ("soft", "hard"):
        torch.manual_seed(1)
        model = Tiny(8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        objective = Distillation(TASK, teacher, mode=mode, weight=1.0, temperature=1.0)
        state = TrainState(model=model, optimizer=optimizer)
        list(steps(state, objective, batches((64,) * 4), TrainPlan(epochs=40), fp32))
        unseen = next(batches((512,)).epoch(1234))
        agreement = model.eval()(unseen.images).argmax(1) == teacher.answers(unseen).logits.argmax(1)
        assert agreement.float().mean() > 0.9, mode  # Seen: 0.97 and 0.96; by chance 0.4


def test_the_teachers_answers_are_put_in_the_students_order(make_teacher, batches):
    batch = next(batches().epoch(0))
    straight = make_teacher().answers(batch).logits
    reordered = make_teacher(classes=("c", "a", "b")).answers(batch).logits
    assert torch.equal(reordered, straight[:, [1, 2, 0]])


@pytest.mark.parametrize(
    ("teacher", "sentence"),
    [
        (("a", "b"), "The teacher knows 2 classes and the images show 3: 'c' only the images, none only the teacher"),
        (("a", "b", "c", "d"), "none only the images, 'd' only the teacher"),
        (("alpha", "b", "c"), "'a' only the images, 'alpha' only the teacher"),
    ],
)
def test_other_classes_are_refused_in_one_sentence(teacher, sentence):
    with pytest.raises(ConfigError, match=sentence):
        class_order(teacher, CLASSES)


def test_a_teacher_sees_the_same_pixels_in_its_own_normalisation(make_teacher):
    pixels = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    as_student, as_teacher = (
        (pixels - torch.tensor(p.mean).double().view(3, 1, 1)) / torch.tensor(p.std).double().view(3, 1, 1)
        for p in (PLAIN, IMAGENET)
    )
    shown = make_teacher(preprocess=IMAGENET).prepare(as_student.float())
    torch.testing.assert_close(shown, as_teacher.float(), rtol=0, atol=2e-6)  # Seen: 5e-7
    assert make_teacher().prepare(shown) is shown  # nothing to do, so nothing is rounded


@pytest.mark.parametrize("size", [(16, 16), (5, 5), (4, 12)])
def test_a_teacher_of_another_size_sees_the_picture_as_pillow_resizes_it(make_teacher, size):
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shown = make_teacher(preprocess=Preprocess(image_size=size)).prepare(image)
    assert shown.shape[2:] == size
    for mine, channel in zip(shown[0], image[0], strict=True):
        resized = Image.fromarray(channel.numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(mine, np.asarray(resized), atol=1e-6)  # Seen: 2e-7


def test_a_teacher_of_another_size_and_normalisation_gets_both(make_teacher):
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    eight = Preprocess(image_size=(8, 8), mean=IMAGENET.mean, std=IMAGENET.std)
    small, normalised = Preprocess(image_size=(5, 5)), make_teacher(preprocess=eight).prepare(image)
    both = Preprocess(image_size=(5, 5), mean=IMAGENET.mean, std=IMAGENET.std)
    expected = make_teacher(preprocess=small).prepare(normalised)
    torch.testing.assert_close(make_teacher(preprocess=both).prepare(image), expected, rtol=0, atol=1e-6)


def test_batches_repeat_with_their_places(batches):
    repeating = RepeatingBatches(batches((4, 4, 2)), 2)
    first, third = (list(repeating.epoch(epoch)) for epoch in (0, 2))
    assert len(repeating) == 3
    assert [batch.place for batch in first] == [batch.place for batch in third] == [0, 1, 2]
    assert all(torch.equal(one.images, other.images) for one, other in zip(first, third, strict=True))
    assert all(torch.equal(one.targets, other.targets) for one, other in zip(first, third, strict=True))
    assert [batch.place for batch in repeating.epoch(5, start_batch=1)] == [4, 5]
    assert not torch.equal(next(repeating.epoch(1)).images, first[0].images)


def test_what_is_remembered_is_what_would_be_said_again(make_teacher, batches, fp32):
    teacher = make_teacher(with_features=True)
    remembering, repeating = RememberingTeacher(teacher), RepeatingBatches(batches(), 2)
    first = [remembering.answers(batch) for epoch in (0, 1) for batch in repeating.epoch(epoch)]
    later = list(repeating.epoch(2)) + list(repeating.epoch(3))
    for batch, before in zip(later, first, strict=True):
        again, fresh = remembering.answers(batch), teacher.answers(batch)
        for kept, at_first, exact in (
            (again.logits, before.logits, fresh.logits),
            (again.features, before.features, fresh.features),
        ):
            assert torch.equal(kept, at_first)
            assert torch.equal(kept, exact.half().float())


def test_a_remembering_teacher_is_asked_once_about_each_batch(batches, fp32):
    torch.manual_seed(0)
    model = Tiny(5)
    teacher = Fixed(Answers(torch.zeros(4, 3)))
    objective = Distillation(TASK, RememberingTeacher(teacher))
    state = TrainState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    list(steps(state, objective, RepeatingBatches(batches(), 2), TrainPlan(epochs=7, accumulate=3), fp32))
    assert teacher.asked == 2 * 4

"""The student: its special cases, what it reads, and what it is before the first update."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ard.core.errors import InputError
from ard.diffusion.process import LEAST_ALPHA, Diffusion, DiffusionKind, ddim_step
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.reference import block_mask
from ard.student.sampling import sample
from ard.student.student import Prediction, StateKind, Student
from ard.teacher.teacher import Guidance, Ode, Teacher, solve_pf_ode

MakeStudent = Callable[..., Student]
MakeTeacher = Callable[..., Teacher]
MakeLatents = Callable[..., Tensor]

DIAGONAL, WINDOW, ANCHOR, CAUSAL = HistoryMask
SHARED, GATED = HistoryAttention.SHARED, HistoryAttention.GATED
ALL = -1
LABEL = torch.tensor([4, 1])
SOLVER = {"prediction": Prediction.SOLVER_STEP}

every_mask = pytest.mark.parametrize("mask", HistoryMask)
every_history = pytest.mark.parametrize("history", HistoryAttention)
every_number_of_steps = pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
every_number_of_blocks = pytest.mark.parametrize("history_blocks", [0, 1, ALL])
every_kind = pytest.mark.parametrize("kind", DiffusionKind)


def assert_equal(first: Tensor, second: Tensor, *, tolerance: float = 1e-10) -> None:
    """The greatest difference is at most `tolerance`, relative to the size of the values."""
    assert first.shape == second.shape
    difference = (first - second).detach().abs().max()
    assert difference <= tolerance * second.detach().abs().max().clamp(min=1)


def differ(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() > 1e-3 * second.abs().max())


# Special cases.


@every_mask
@every_history
@every_number_of_blocks
def test_one_step_is_knowledge_distillation_for_every_mask_and_number_of_blocks(
    mask: HistoryMask,
    history: HistoryAttention,
    history_blocks: int,
    make_student: MakeStudent,
    make_latents: MakeLatents,
) -> None:
    kd = make_student(num_steps=1, mask=DIAGONAL, history_blocks=0)
    student = make_student(num_steps=1, mask=mask, history=history, history_blocks=history_blocks)
    assert torch.equal(student(make_latents(2, 1), LABEL), kd(make_latents(2, 1), LABEL))


@every_mask
@every_history
@every_number_of_blocks
@pytest.mark.parametrize("num_steps", [2, 3, 5])
def test_the_diagonal_mask_and_no_history_blocks_are_both_step_distillation(
    mask: HistoryMask,
    history: HistoryAttention,
    history_blocks: int,
    num_steps: int,
    make_student: MakeStudent,
    make_latents: MakeLatents,
) -> None:
    no_blocks = make_student(num_steps=num_steps, mask=mask, history_blocks=0, history=history)
    diagonal = make_student(num_steps=num_steps, mask=DIAGONAL, history_blocks=history_blocks, history=history)
    states = make_latents(2, num_steps)
    assert torch.equal(no_blocks(states, LABEL), diagonal(states, LABEL))


def test_step_distillation_treats_every_state_alone(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, states = make_student(num_steps=3, mask=DIAGONAL), make_latents(2, 3)
    for step in range(3):
        changed = make_latents(2, 3, seed=1)
        changed[:, step] = states[:, step]
        assert_equal(student(changed, LABEL)[:, step], student(states, LABEL)[:, step])


@every_history
@pytest.mark.parametrize("history_blocks", [1, ALL])
def test_at_two_steps_all_masks_with_history_agree(
    history: HistoryAttention, history_blocks: int, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    states = make_latents(2, 2)
    outputs = [
        make_student(num_steps=2, mask=mask, history=history, history_blocks=history_blocks)(states, LABEL)
        for mask in (WINDOW, ANCHOR, CAUSAL)
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@every_history
@pytest.mark.parametrize("num_steps", [3, 5])
@pytest.mark.parametrize("history_blocks", [1, 2, ALL])
def test_from_three_steps_on_the_masks_differ_pairwise(
    history: HistoryAttention,
    num_steps: int,
    history_blocks: int,
    make_student: MakeStudent,
    make_latents: MakeLatents,
) -> None:
    states = make_latents(2, num_steps)
    last = [
        make_student(num_steps=num_steps, mask=mask, history=history, history_blocks=history_blocks)(states, LABEL)[
            :, -1
        ]
        for mask in HistoryMask
    ]
    assert all(differ(a, b) for a, b in itertools.combinations(last, 2))


@every_history
@pytest.mark.parametrize("mask", [WINDOW, ANCHOR, CAUSAL])
def test_the_history_changes_every_step_but_the_first(
    mask: HistoryMask, history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    states = make_latents(2, 3)
    reads, ignores = (
        make_student(num_steps=3, mask=mask, history=history, history_blocks=n)(states, LABEL) for n in (ALL, 0)
    )
    assert_equal(reads[:, 0], ignores[:, 0])
    assert differ(reads[:, 1], ignores[:, 1])
    assert differ(reads[:, 2], ignores[:, 2])


def test_the_number_of_history_blocks_matters(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    states = make_latents(2, 3)
    outputs = [make_student(num_steps=3, history=SHARED, history_blocks=n)(states, LABEL)[:, 1:] for n in range(4)]
    assert all(differ(a, b) for a, b in itertools.combinations(outputs, 2))


@every_history
def test_all_blocks_is_what_minus_one_means(
    history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    every, three = (make_student(num_steps=3, history=history, history_blocks=n) for n in (ALL, 3))
    assert every.config == three.config
    assert torch.equal(every(make_latents(2, 3), LABEL), three(make_latents(2, 3), LABEL))


# What a step reads.


@every_mask
@every_history
def test_with_one_history_block_gradients_flow_from_exactly_the_steps_of_figure_3b(
    mask: HistoryMask, history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student = make_student(num_steps=4, mask=mask, history=history, history_blocks=1)
    states = make_latents(2, 4).requires_grad_()
    output = student(states, LABEL)
    reads = torch.zeros(4, 4, dtype=torch.bool)
    for step in range(4):
        (gradient,) = torch.autograd.grad(output[:, step].sum(), states, retain_graph=True)
        reads[step] = gradient.abs().amax(dim=(0, 2, 3, 4)) > 0
    assert torch.equal(reads, block_mask(mask, S=4))


@every_mask
@every_history
@pytest.mark.parametrize("prediction", Prediction)
def test_no_gradient_flows_from_a_later_step(
    mask: HistoryMask,
    history: HistoryAttention,
    prediction: Prediction,
    make_student: MakeStudent,
    make_latents: MakeLatents,
) -> None:
    student = make_student(num_steps=4, mask=mask, history=history, prediction=prediction)
    states = make_latents(2, 4).requires_grad_()
    output = student(states, LABEL)
    for step in range(4):
        (gradient,) = torch.autograd.grad(output[:, step].square().sum(), states, retain_graph=True)
        assert gradient[:, step + 1 :].count_nonzero() == 0
        assert gradient[:, step].count_nonzero() > 0


@every_history
def test_no_gradient_flows_between_trajectories(
    history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student = make_student(num_steps=3, history=history)
    states = make_latents(2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(student(states, LABEL)[0].sum(), states)
    assert gradient[1].count_nonzero() == 0


@every_mask
@every_history
@pytest.mark.parametrize("known", [1, 2, 3])
def test_the_first_predictions_do_not_change_with_later_inputs(
    mask: HistoryMask,
    history: HistoryAttention,
    known: int,
    make_student: MakeStudent,
    make_latents: MakeLatents,
) -> None:
    student, states = make_student(num_steps=4, mask=mask, history=history), make_latents(2, 4)
    changed = torch.cat([states[:, :known], make_latents(2, 4 - known, seed=1)], dim=1)
    before, after = student(states, LABEL), student(changed, LABEL)
    assert torch.equal(before[:, :known], after[:, :known])
    assert differ(after[:, known], before[:, known])


@pytest.mark.parametrize("history_blocks", [0, ALL])
def test_a_forward_on_the_first_states_predicts_as_one_on_all_of_them(
    history_blocks: int, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student, states = make_student(num_steps=4, history_blocks=history_blocks), make_latents(2, 4)
    assert_equal(student(states[:, :2], LABEL), student(states, LABEL)[:, :2])


@every_history
def test_a_trajectory_does_not_depend_on_its_batch(
    history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student, states = make_student(num_steps=3, history=history, per_step_heads=True), make_latents(5, 3)
    label = torch.arange(5)
    alone = torch.cat([student(states[i : i + 1], label[i : i + 1]) for i in range(5)])
    assert_equal(student(states, label), alone)


def test_steps_and_labels_matter(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, states = make_student(num_steps=3, history_blocks=0), make_latents(2, 1).expand(-1, 3, -1, -1, -1)
    output = student(states, LABEL)
    assert differ(student(states, LABEL.flip(0)), output)
    with torch.no_grad():
        student.step_embedding[1].zero_()
    assert [differ(student(states, LABEL)[:, i], output[:, i]) for i in range(3)] == [False, True, False]


def test_gates_belong_to_a_block_a_step_and_a_head(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, states = make_student(num_steps=4, history_blocks=2), make_latents(2, 4)
    assert student.gates.shape == (2, 4, 2)
    before = student(states, LABEL)
    with torch.no_grad():
        student.gates[1, 2, 0] += 1
    assert [differ(student(states, LABEL)[:, i], before[:, i]) for i in range(4)] == [False, False, True, False]


def test_per_step_heads_belong_to_their_step(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, states = make_student(num_steps=3, per_step_heads=True), make_latents(2, 3)
    before = student(states, LABEL)
    with torch.no_grad():
        student.step_heads[1].linear.bias += 1
    assert [differ(student(states, LABEL)[:, i], before[:, i]) for i in range(3)] == [False, True, False]


# What the output means.


@every_kind
@pytest.mark.parametrize("state", StateKind)
def test_the_network_predicts_the_next_state_the_solvers_output_or_the_clean_estimate(
    kind: DiffusionKind, state: StateKind, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    config = {"num_steps": 3, "state": state, "history_blocks": 0}
    literal = make_student(kind, prediction=Prediction.NEXT_STATE, **config)
    solver = make_student(kind, prediction=Prediction.SOLVER_STEP, **config)
    states = make_latents(2, 3)
    output, rows = literal(states, LABEL).flatten(0, 1), states.flatten(0, 1)  # The network's own output.
    t, t_next = solver.tau[:-1].repeat(2), solver.tau[1:].repeat(2)
    clean = Diffusion(kind=kind).split(rows, output, t)[0]
    wanted = clean if state is StateKind.X_0_HAT else ddim_step(Diffusion(kind=kind), rows, output, t, t_next)
    assert_equal(solver(states, LABEL).flatten(0, 1), wanted)
    assert differ(output, wanted)


# Before the first update.


def unguided(teacher: Teacher, noise: Tensor, student: Student) -> Tensor:
    """The teacher's own states on the student's grid."""
    times = tuple(student.tau.tolist())
    ode = Ode(times=times, solver=teacher.diffusion.default_solver, guidance=Guidance(cfg_scale=1.0))
    return solve_pf_ode(teacher, noise, LABEL, ode=ode, kept=tuple(range(len(times)))).x_t


def assert_is_the_teacher(student: Student, teacher: Teacher, noise: Tensor) -> None:
    """Stepping with the cache and all steps at once."""
    wanted = unguided(teacher, noise, student)
    assert_equal(sample(student, noise, condition=LABEL), wanted, tolerance=1e-6)
    assert_equal(student(wanted[:, :-1], LABEL), wanted[:, 1:], tolerance=1e-6)


@every_kind
@every_mask
@pytest.mark.parametrize(("history", "history_blocks"), [(SHARED, 0), (GATED, 0), (GATED, 1), (GATED, 2), (GATED, 3)])
def test_before_the_first_update_the_student_is_the_unguided_teacher(
    kind: DiffusionKind,
    mask: HistoryMask,
    history: HistoryAttention,
    history_blocks: int,
    make_student: MakeStudent,
    make_teacher: MakeTeacher,
    make_latents: MakeLatents,
) -> None:
    config = {"num_steps": 3, "mask": mask, "history": history, "history_blocks": history_blocks, **SOLVER}
    assert_is_the_teacher(make_student(kind, fresh=True, **config), make_teacher(kind), make_latents(2))


@every_kind
@every_number_of_steps
@pytest.mark.parametrize("per_step_heads", [False, True])
def test_so_it_is_with_any_number_of_steps_and_heads(
    kind: DiffusionKind,
    num_steps: int,
    per_step_heads: bool,
    make_student: MakeStudent,
    make_teacher: MakeTeacher,
    make_latents: MakeLatents,
) -> None:
    student = make_student(kind, fresh=True, num_steps=num_steps, per_step_heads=per_step_heads, **SOLVER)
    assert_is_the_teacher(student, make_teacher(kind), make_latents(2))


@every_kind
@pytest.mark.parametrize("mask", [WINDOW, ANCHOR, CAUSAL])
def test_with_shared_history_it_is_not(
    kind: DiffusionKind,
    mask: HistoryMask,
    make_student: MakeStudent,
    make_teacher: MakeTeacher,
    make_latents: MakeLatents,
) -> None:
    student = make_student(kind, fresh=True, num_steps=3, mask=mask, history=SHARED, history_blocks=1, **SOLVER)
    wanted = unguided(make_teacher(kind), make_latents(2), student)
    own = sample(student, make_latents(2), condition=LABEL)
    assert_equal(own[:, 1], wanted[:, 1])
    assert differ(own[:, 2], wanted[:, 2])
    assert differ(own[:, 3], wanted[:, 3])


# What it predicts is bounded.


def gains(student: Student) -> Tensor:
    """How much each step's next state moves with the network's output, without the network."""
    x, tau = torch.zeros(student.config.num_steps, 1, 1, 1, dtype=torch.float64), student.tau.double()
    return (student.next_state(x, x + 1, tau[:-1], tau[1:]) - student.next_state(x, x, tau[:-1], tau[1:])).flatten()


@every_kind
@pytest.mark.parametrize("state", StateKind)
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_by_default_no_step_magnifies_what_the_network_puts_out(
    kind: DiffusionKind, state: StateKind, num_steps: int, make_student: MakeStudent
) -> None:
    assert (gains(make_student(kind, num_steps=num_steps, state=state)).abs() <= 1 / LEAST_ALPHA).all()


def test_a_solver_step_from_pure_vp_noise_magnifies_it_150_times(make_student: MakeStudent) -> None:
    student = make_student(DiffusionKind.VP, num_steps=1, **SOLVER)
    alpha, sigma = student.diffusion.alpha_sigma(student.tau[:1].double())
    assert_equal(gains(student), -sigma / alpha)
    assert (gains(student) < -150).all()


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_first_loss_and_gradient_of_every_step_are_of_the_size_of_the_states(
    num_steps: int, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    """A teacher that errs in eps by a tenth, as one does at noise that it hardly saw: its solver's step explodes."""
    losses, norms = {}, {}
    for prediction in (None, Prediction.SOLVER_STEP):
        student = make_student(DiffusionKind.VP, num_steps=num_steps, prediction=prediction)
        x, error = make_latents(num_steps), 0.1 * make_latents(2 * num_steps)[num_steps:]
        tau = student.tau.double()
        output = (x + error).requires_grad_()
        steps = student.next_state(x, output, tau[:-1], tau[1:]).square().flatten(1).mean(1)
        losses[prediction] = steps.detach()
        norms[prediction] = torch.autograd.grad(steps.sum(), output)[0].flatten(1).norm(dim=1)
    assert (losses[None] < 5).all()
    assert (norms[None] < 1).all()
    assert norms[Prediction.SOLVER_STEP][0] > 5 * norms[None][0]
    if num_steps == 1:
        assert losses[Prediction.SOLVER_STEP][0] > 30 * losses[None][0]


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_a_bounded_step_is_the_solvers_where_the_signal_is_strong(num_steps: int, make_student: MakeStudent) -> None:
    times = torch.arange(1, 1001, dtype=torch.float64)
    x, output = torch.randn(2, 1000, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bounded, exact = (
        make_student(DiffusionKind.VP, num_steps=num_steps, prediction=one).next_state(x, output, times, times - 1)
        for one in (Prediction.BOUNDED_STEP, Prediction.SOLVER_STEP)
    )
    strong = Diffusion(kind=DiffusionKind.VP).alpha_sigma(times)[0] >= LEAST_ALPHA
    assert_equal(bounded[strong], exact[strong])
    assert differ(bounded[~strong], exact[~strong])


@every_kind
@pytest.mark.parametrize("state", StateKind)
def test_every_prediction_of_the_true_states_gives_the_next_one(
    kind: DiffusionKind, state: StateKind, make_student: MakeStudent
) -> None:
    """From x_t = alpha x_0 + sigma noise, each quantity's true value leads to the same next state."""
    diffusion = Diffusion(kind=kind)
    t, t_next = (torch.full((3,), value * diffusion.max_time, dtype=torch.float64) for value in (0.3, 0.1))
    x_0, noise = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, after = diffusion.add_noise(x_0, noise, t), diffusion.add_noise(x_0, noise, t_next)
    wanted = after if state is StateKind.X_T else x_0
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in diffusion.alpha_sigma(t))
    velocity = alpha * noise - sigma * x_0 if kind is DiffusionKind.VP else noise - x_0
    own = diffusion.target(x_0, noise)
    outputs = {
        Prediction.SOLVER_STEP: own,
        Prediction.BOUNDED_STEP: own,
        Prediction.VELOCITY: velocity,
        Prediction.CLEAN: x_0,
        Prediction.NEXT_STATE: wanted,
    }
    assert set(outputs) == set(Prediction)
    for prediction, output in outputs.items():
        student = make_student(kind, prediction=prediction, state=state)
        assert_equal(student.next_state(x, output, t, t_next), wanted)


def test_a_closed_gate_learns(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student = make_student(fresh=True, num_steps=3)
    student(make_latents(2, 3), LABEL).square().sum().backward()
    assert student.gates.grad is not None
    assert (student.gates.grad[:, 1:] != 0).all()
    assert (student.gates.grad[:, 0] == 0).all()  # The first step has no history.


# What it costs.


def modulations(student: Student) -> list[nn.Module]:
    return [module for name, module in student.named_modules() if name.endswith("adaLN_modulation")]


@every_history
def test_the_modulation_is_computed_once_per_image_and_step(
    history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student, shapes = make_student(num_steps=3, history=history), []
    assert len(modulations(student)) == 3 + 1
    for module in modulations(student):
        module.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape)))
    student(make_latents(2, 3), LABEL)
    assert shapes == [(2 * 3, 16)] * 4
    shapes.clear()
    sample(student, make_latents(2), condition=LABEL)
    assert shapes == [(2, 16)] * (3 * 4)


def test_every_step_head_modulates_its_own_rows_once(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, shapes = make_student(num_steps=3, per_step_heads=True), []
    for head in student.step_heads:
        head.adaLN_modulation.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape)))
    student(make_latents(2, 3), LABEL)
    assert shapes == [(2, 16)] * 3


@pytest.mark.parametrize(("history", "slots"), [(HistoryAttention.GATED, 2), (HistoryAttention.SHARED, 3)])
def test_the_cache_is_allocated_once_and_fills_step_by_step(
    history: HistoryAttention, slots: int, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student, states = make_student(num_steps=3, history_blocks=2, history=history), make_latents(2, 3)
    cache = student.make_cache(states[:, 0])
    assert cache.store.shape == (2, 2, 2, 2, slots * 4, 8)  # k or v, block, batch, head, slots x tokens, width.
    place, contents = cache.store.data_ptr(), [cache.store.zero_().clone()]
    for step in range(3):
        student(states[:, step : step + 1], LABEL, step=step, cache=cache)
        contents.append(cache.store.clone())
    assert cache.store.data_ptr() == place
    filled = [content.unflatten(4, (slots, 4)).ne(0).all(dim=(0, 1, 2, 3, 5, 6)).sum().item() for content in contents]
    assert filled == [0, 1, 2, slots]


def test_each_sample_makes_one_cache(
    make_student: MakeStudent, make_latents: MakeLatents, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, made = make_student(num_steps=5), []
    make_cache = student.make_cache
    monkeypatch.setattr(student, "make_cache", lambda noise: made.append(make_cache(noise)) or made[-1])
    sample(student, make_latents(2), condition=LABEL)
    assert len(made) == 1


@every_mask
@every_history
def test_what_the_cache_held_before_does_not_matter(
    mask: HistoryMask, history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student, states = make_student(num_steps=4, mask=mask, history=history), make_latents(2, 4)
    cache = student.make_cache(states[:, 0])
    cache.store.fill_(float("nan"))
    steps = [student(states[:, step : step + 1], LABEL, step=step, cache=cache) for step in range(4)]
    assert_equal(torch.cat(steps, dim=1), student(states, LABEL))


# What is refused.


@pytest.mark.parametrize("history_blocks", [-2, 4, 28])
def test_more_history_blocks_than_the_network_has_are_refused(history_blocks: int, make_student: MakeStudent) -> None:
    with pytest.raises(InputError, match=rf"history_blocks is {history_blocks}; the network has 3 blocks"):
        make_student(history_blocks=history_blocks, num_steps=2)


@pytest.mark.parametrize("num_states", [2, 3, 5])
def test_a_grid_of_another_number_of_steps_is_refused(num_states: int, make_student: MakeStudent) -> None:
    student = make_student(num_steps=3)
    tau = tuple(1 - i / (num_states - 1) for i in range(num_states))
    with pytest.raises(InputError, match=rf"num_steps is 3, but the grid has {num_states - 1} steps"):
        Student(student.network, student.diffusion, tau, student.config)


def test_constants_are_not_among_a_students_weights(make_student: MakeStudent) -> None:
    student: Any = make_student(num_steps=3, per_step_heads=True)
    assert set(student.state_dict()) == {name for name, _ in student.named_parameters()}

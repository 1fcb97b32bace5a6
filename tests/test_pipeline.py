"""ARDPipeline draws what `ard sample` draws, and does what users of diffusers expect of a pipeline."""

import inspect
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines import pipeline_utils
from diffusers.utils import hub_utils
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from ard.core.errors import InputError
from ard.images.pictures import to_pictures, to_pixels
from ard.networks.autoencoder import LatentScale, load_autoencoder
from ard.pipeline import ARDPipeline, ARDStudentModel, _check_components, student_model
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.sampling import sample
from ard.teacher.teacher import noise_for_seeds

COMPILED = f"""
import sys, torch
from ard import ARDPipeline

for part in ("blocks", "student"):
    pipe = ARDPipeline.from_pretrained(sys.argv[1])
    if part == "blocks":
        pipe.student.compile_repeated_blocks(backend="eager")
    else:
        pipe.student = torch.compile(pipe.student, backend="eager")
    seeds = [torch.Generator().manual_seed(seed) for seed in {[5, 6, 7, 1_000_000]}]
    images = pipe({[3, 0, 4, 1]}, generator=seeds, output_type="latent").images
    torch.testing.assert_close(images, torch.load(sys.argv[2], weights_only=True), rtol=1e-5, atol=1e-5)
pipe.save_pretrained("again")
"""

MakeStudent = Callable[..., Any]
MakePipeline = Callable[..., ARDPipeline]
CPU = torch.device("cpu")
LABELS = [3, 0, 4, 1]
SEEDS = [5, 6, 7, 1_000_000]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def seeded(seeds: list[int] = SEEDS) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in seeds]


def drawn(pipeline: ARDPipeline, labels: list[int] = LABELS, seeds: list[int] = SEEDS, **options: Any) -> Any:
    """The last states of these labels and seeds, or the pictures that `output_type` asks for."""
    return pipeline(labels, generator=seeded(seeds), **{"output_type": "latent", **options}).images


@pytest.fixture
def make_pipeline(make_carded_student: MakeStudent, autoencoder_folder: Path) -> MakePipeline:
    """make_pipeline(channels, names, **config): with an autoencoder where there are four channels."""

    def make(channels: int = 1, names: dict[str, str] | None = None, **config: Any) -> ARDPipeline:
        vae = load_autoencoder(autoencoder_folder, CPU).network if channels == 4 else None
        pipeline = ARDPipeline(student_model(*make_carded_student(channels, **config)), vae, names)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture
def reloaded(tmp_path: Path) -> Callable[..., ARDPipeline]:
    """Save a pipeline, then load it."""

    def reload(pipeline: ARDPipeline, **options: Any) -> ARDPipeline:
        pipeline.save_pretrained(tmp_path / "pipeline")
        loaded = ARDPipeline.from_pretrained(tmp_path / "pipeline", **options)
        loaded.set_progress_bar_config(disable=True)
        return loaded

    return reload


class TestPictures:
    """What is drawn."""

    @pytest.mark.parametrize("history", HistoryAttention)
    @pytest.mark.parametrize("mask", HistoryMask)
    def test_a_list_of_seeded_generators_gives_the_samples_of_these_seeds_to_the_bit(
        self,
        mask: HistoryMask,
        history: HistoryAttention,
        make_pipeline: MakePipeline,
        make_carded_student: MakeStudent,
    ) -> None:
        student, _ = make_carded_student(mask=mask, history=history)
        states = sample(student, noise_for_seeds(torch.tensor(SEEDS), (1, 8, 8)), condition=torch.tensor(LABELS))[:, -1]
        pipeline = make_pipeline(mask=mask, history=history)
        assert torch.equal(drawn(pipeline), states)
        pictures = drawn(pipeline, output_type="pil")
        assert [picture.tobytes() for picture in pictures] == [one.tobytes() for one in to_pictures(to_pixels(states))]
        assert {(picture.mode, picture.size) for picture in pictures} == {("L", (8, 8))}

    def test_latents_are_decoded_as_everywhere_else(
        self, make_pipeline: MakePipeline, autoencoder_folder: Path
    ) -> None:
        pipeline = make_pipeline(4)
        images = load_autoencoder(autoencoder_folder, CPU).decode(drawn(pipeline))
        pictures = drawn(pipeline, output_type="pil")
        assert np.array_equal(np.stack([np.asarray(one) for one in pictures]), to_pixels(images).numpy())
        assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", (16, 16))}

    def test_arrays_and_tensors_lie_between_0_and_1(self, make_pipeline: MakePipeline) -> None:
        pipeline = make_pipeline()
        tensor, array = (drawn(pipeline, output_type=kind) for kind in ("pt", "np"))
        assert torch.equal(tensor, (drawn(pipeline) / 2 + 0.5).clamp(0, 1))
        assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
        assert 0 <= tensor.min() < tensor.max() <= 1

    def test_a_picture_does_not_depend_on_its_batch(self, make_pipeline: MakePipeline) -> None:
        pipeline = make_pipeline()
        alone = [drawn(pipeline, [label], [seed]) for label, seed in zip(LABELS, SEEDS, strict=True)]
        torch.testing.assert_close(drawn(pipeline), torch.cat(alone), rtol=1e-4, atol=1e-5)

    def test_one_generator_is_asked_for_one_picture_after_the_other(self, make_pipeline: MakePipeline) -> None:
        one = Generator().manual_seed(5)
        noises = torch.stack([torch.randn(1, 8, 8, generator=one) for _ in LABELS])
        pipeline = make_pipeline()
        images = pipeline(LABELS, generator=Generator().manual_seed(5), output_type="latent").images
        assert torch.equal(images, pipeline(LABELS, latents=noises, output_type="latent").images)

    def test_each_label_is_drawn_as_often_as_asked_for(self, make_pipeline: MakePipeline) -> None:
        pipeline, seeds = make_pipeline(), [1, 2, 3, 4]
        assert torch.equal(
            drawn(pipeline, [3, 0], seeds, num_images_per_prompt=2), drawn(pipeline, [3, 3, 0, 0], seeds)
        )

    def test_without_a_generator_every_call_draws_anew(self, make_pipeline: MakePipeline) -> None:
        pipeline = make_pipeline()
        first, second = (pipeline(3, output_type="latent").images for _ in range(2))
        assert first.shape == (1, 1, 8, 8)
        assert not torch.equal(first, second)

    def test_classes_have_names(self, make_pipeline: MakePipeline) -> None:
        pipeline = make_pipeline(names={"0": "zero, null", "3": "three"})
        assert pipeline.labels == {"zero": 0, "null": 0, "three": 3}
        assert torch.equal(drawn(pipeline, ["three", "null"], [1, 2]), drawn(pipeline, [3, 0], [1, 2]))  # type: ignore[list-item]

    def test_a_tuple_is_returned_when_no_object_is_wanted(self, make_pipeline: MakePipeline) -> None:
        pipeline = make_pipeline()
        (images,) = pipeline(LABELS, generator=seeded(), output_type="latent", return_dict=False)
        assert torch.equal(images, drawn(pipeline))


class TestCallback:
    """callback_on_step_end."""

    def test_it_sees_every_step_with_its_time_and_state(
        self, make_pipeline: MakePipeline, make_carded_student: MakeStudent
    ) -> None:
        pipeline, (student, card), seen = make_pipeline(), make_carded_student(), []

        def look(which: ARDPipeline, step: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            assert which is pipeline
            seen.append((step, float(time), tensors["latents"]))
            return {}

        drawn(pipeline, callback_on_step_end=look, num_inference_steps=3)
        noise = noise_for_seeds(torch.tensor(SEEDS), (1, 8, 8))
        trajectory = sample(student, noise, condition=torch.tensor(LABELS))
        assert [step for step, _, _ in seen] == [0, 1, 2]
        assert [time for _, time, _ in seen] == pytest.approx(card.tau[:3])
        assert all(torch.equal(x, trajectory[:, step + 1]) for step, _, x in seen)

    def test_the_state_that_it_returns_is_the_one_that_goes_on(self, make_pipeline: MakePipeline) -> None:
        pipeline, other = make_pipeline(), torch.zeros(4, 1, 8, 8)
        assert torch.equal(drawn(pipeline, callback_on_step_end=lambda *_: {"latents": other}), other)
        first = drawn(pipeline, callback_on_step_end=lambda _, step, *__: {} if step else {"latents": other})
        assert not torch.equal(first, drawn(pipeline))

    def test_it_can_end_the_call(self, make_pipeline: MakePipeline) -> None:
        pipeline, steps = make_pipeline(), []
        whole = drawn(pipeline)

        def stop(which: Any, step: int, _: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            steps.append((step, tensors["latents"]))
            which._interrupt = step == 1
            return tensors

        assert torch.equal(drawn(pipeline, callback_on_step_end=stop), steps[1][1])
        assert [step for step, _ in steps] == [0, 1]
        assert torch.equal(drawn(pipeline), whole)  # The next call is not interrupted.


class TestThreads:
    """Two calls of one pipeline that take turns, step by step."""

    @pytest.fixture
    def in_turns(self) -> Callable[[list[Callable[[Any], Any]]], list[Any]]:
        """Call functions at the same time; each gets a callback that waits for the others after every step."""

        def call(functions: list[Callable[[Any], Any]]) -> list[Any]:
            barrier = threading.Barrier(len(functions))

            def wait(*_: Any) -> dict[str, Tensor]:
                barrier.wait(timeout=20)
                return {}

            with ThreadPoolExecutor(len(functions)) as pool:
                return [future.result() for future in [pool.submit(function, wait) for function in functions]]

        return call

    @pytest.mark.parametrize("channels", [1, 4])
    def test_they_draw_what_they_draw_one_after_the_other(
        self, channels: int, make_pipeline: MakePipeline, in_turns: Callable[..., list[Any]]
    ) -> None:
        pipeline = make_pipeline(channels)
        calls = [([3, 0], [1, 2]), ([1, 4], [3, 4])]
        one_by_one = [drawn(pipeline, *call, output_type="pt") for call in calls]
        together = in_turns(
            [
                lambda wait, call=call: drawn(pipeline, *call, output_type="pt", callback_on_step_end=wait)
                for call in calls
            ]
        )
        assert all(map(torch.equal, together, one_by_one))

    def test_the_interruption_of_one_does_not_end_the_other(self, make_pipeline: MakePipeline) -> None:
        pipeline, stopped = make_pipeline(), threading.Event()

        def stop(which: Any, *_: Any) -> dict[str, Tensor]:
            which._interrupt = True
            stopped.set()
            return {}

        def wait(*_: Any) -> dict[str, Tensor]:
            assert stopped.wait(20)
            return {}

        with ThreadPoolExecutor(2) as pool:
            whole = pool.submit(drawn, pipeline, callback_on_step_end=wait)
            pool.submit(drawn, pipeline, callback_on_step_end=stop).result()
        assert torch.equal(whole.result(), drawn(pipeline))


def refuse(**options: Any) -> Callable[[ARDPipeline], object]:
    return lambda pipeline: pipeline(**{"class_labels": LABELS, **options})


OTHER = torch.zeros(4, 1, 9, 8)
REFUSALS: dict[str, tuple[int, Callable[[ARDPipeline], object], str]] = {
    "a prompt": (1, refuse(class_labels=None, prompt="a dog"), "knows classes, no text: give class_labels in place"),
    "no label": (1, refuse(class_labels=None), r"class_labels is empty; allowed: 0 to 4, or a name in pipe.labels"),
    "an empty list": (1, refuse(class_labels=[]), r"class_labels is empty; allowed: 0 to 4"),
    "a label too large": (1, refuse(class_labels=5), "class label 5 is unknown; allowed: 0 to 4"),
    "a label below zero": (1, refuse(class_labels=[-1]), "class label -1 is unknown; allowed: 0 to 4"),
    "an unknown name": (1, refuse(class_labels="dog"), "class label 'dog' is unknown"),
    "a number with a fraction": (1, refuse(class_labels=3.7), "class label 3.7 is unknown; allowed: 0 to 4"),
    "yes": (1, refuse(class_labels=True), "class label True is unknown"),
    "yes among labels": (1, refuse(class_labels=[1, True]), "class label True is unknown"),
    "numpy's yes": (1, refuse(class_labels=np.bool_(1)), "class label True is unknown"),
    "an array of fractions": (1, refuse(class_labels=np.array([1.5])), "class label 1.5 is unknown"),
    "a tensor of fractions": (1, refuse(class_labels=torch.tensor([2.0])), "class label 2.0 is unknown"),
    "a mapping": (1, refuse(class_labels={"a": 1}), "class label {'a': 1} is unknown"),
    "too few generators": (1, refuse(generator=seeded()[:3]), "3 generators for 4 pictures; give one, or one for each"),
    "a seed": (1, refuse(generator=7), r"generator is 7; a torch.Generator is expected, such as torch.Generator\(\)"),
    "seeds": (1, refuse(generator=SEEDS), r"generator is \[5, 6, 7, 1000000\]; a torch.Generator is expected"),
    "other latents": (1, refuse(latents=OTHER), "latents is 4 x 1 x 9 x 8; .* need 4 x 1 x 8 x 8"),
    "an array of others": (1, refuse(latents=OTHER.numpy()), "latents is 4 x 1 x 9 x 8; .* need 4 x 1 x 8 x 8"),
    "a number as latents": (1, refuse(latents=3), "latents is a single number; .* need 4 x 1 x 8 x 8"),
    "words as latents": (1, refuse(latents="noise"), "latents is 'noise'; a tensor or an array of numbers is expected"),
    "complex latents": (1, refuse(latents=torch.zeros(4, 1, 8, 8, dtype=torch.cfloat)), "an array of numbers is"),
    "other steps": (1, refuse(num_inference_steps=50), "is 50; this student was distilled for 3 steps only"),
    "steps in words": (1, refuse(num_inference_steps=[3]), r"is \[3\]; this student was distilled for 3 steps only"),
    "another height": (1, refuse(height=16), "height is 16; this student makes pictures of 8 x 8: leave it out"),
    "another width": (1, refuse(width=16), "width is 16; this student makes pictures of 8 x 8: leave it out"),
    "guidance": (1, refuse(guidance_scale=4.5), "guidance_scale is 4.5; guidance is learned, with the teacher's scale"),
    "guidance as a tensor": (1, refuse(guidance_scale=torch.ones(2)), "guidance_scale is tensor"),
    "a negative prompt": (1, refuse(negative_prompt="blurry"), "negative_prompt is 'blurry'; guidance is learned"),
    "embeddings": (1, refuse(class_labels=None, prompt_embeds=torch.ones(1, 2, 3)), "knows classes, no text"),
    "an output type": (1, refuse(output_type="jpg"), "'jpg'; allowed: pil, np, pt, latent"),
    "no images": (1, refuse(num_images_per_prompt=0), "num_images_per_prompt is 0; .* at least 1"),
    "other tensors": (1, refuse(callback_on_step_end_tensor_inputs=["noise"]), "names noise; allowed: latents"),
    "no autoencoder": (2, refuse(), "makes latents of 2 channels and the pipeline has no vae to decode them"),
    "tiles of pictures": (1, lambda pipeline: pipeline.enable_vae_tiling(), "this pipeline has no vae"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_a_student_cannot_do_is_refused_in_one_line(case: str, make_pipeline: MakePipeline) -> None:
    channels, ask, words = REFUSALS[case]
    with pytest.raises(InputError, match=words) as refusal:
        ask(make_pipeline(channels, {"0": "zero"}))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor(LABELS),
        torch.tensor(LABELS, dtype=torch.uint8),
        np.array(LABELS),
        np.array(LABELS, dtype=np.int16),
        [np.int64(3), torch.tensor(0), 4, np.uint8(1)],
        tuple(LABELS),
        np.array(["3", "zero", "4", "one"], dtype=object),
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', '')}",
)
def test_labels_are_numbers_and_names_of_any_kind(labels: Any, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(names={"0": "zero", "1": "one", "3": "3", "4": "4"})
    assert torch.equal(drawn(pipeline, labels), drawn(pipeline))


@pytest.mark.parametrize("label", [3, np.int64(3), torch.tensor(3), np.array(3)], ids=lambda one: type(one).__name__)
def test_one_label_alone_may_be_any_whole_number(label: Any, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline()
    assert torch.equal(drawn(pipeline, label, [5]), drawn(pipeline, [3], [5]))


def test_noise_may_be_an_array_and_what_is_the_students_own_may_be_said(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline()
    noise = noise_for_seeds(torch.tensor(SEEDS), (1, 8, 8))
    own = {"height": 8, "width": 8, "num_inference_steps": 3, "guidance_scale": 1.25, "negative_prompt": ""}
    for latents in (noise, noise.double(), noise.numpy(), noise.double().numpy(), noise.tolist()):
        images = pipeline(LABELS, latents=latents, output_type="latent", **own).images
        assert torch.equal(images, drawn(pipeline))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_pictures_do_not_depend_on_torchs_default_type(default: torch.dtype, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(4)
    images = drawn(pipeline, output_type="pt")
    torch.set_default_dtype(default)
    try:
        assert torch.equal(drawn(pipeline, output_type="pt"), images)
        assert noise_for_seeds(torch.tensor(SEEDS), (1, 8, 8)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_latents_can_be_had_without_an_autoencoder(make_pipeline: MakePipeline) -> None:
    assert drawn(make_pipeline(2)).shape == (4, 2, 8, 8)


class TestFolder:
    """save_pretrained and from_pretrained."""

    @pytest.mark.parametrize("channels", [1, 4])
    def test_a_saved_pipeline_draws_the_same_pictures_to_the_bit(
        self, channels: int, make_pipeline: MakePipeline, reloaded: Callable[..., ARDPipeline]
    ) -> None:
        pipeline = make_pipeline(channels, {"0": "zero"})
        loaded = reloaded(pipeline)
        assert torch.equal(drawn(loaded, output_type="pt"), drawn(pipeline, output_type="pt"))
        assert loaded.labels == {"zero": 0}
        assert loaded.student.card == pipeline.student.card
        assert not loaded.student.training

    def test_diffusers_knows_the_type_of_everything_that_it_loads(self) -> None:
        """It complains at every load about a type that it does not know, such as a Literal."""
        types = ARDPipeline._get_signature_types()
        assert not [name for name, kinds in types.items() if inspect.Signature.empty in kinds]

    def test_the_student_is_a_model_of_its_own(
        self, make_pipeline: MakePipeline, reloaded: Callable[..., ARDPipeline], tmp_path: Path
    ) -> None:
        pipeline = make_pipeline()
        reloaded(pipeline)
        student = ARDStudentModel.from_pretrained(tmp_path / "pipeline/student")
        again = ARDPipeline(student)
        again.set_progress_bar_config(disable=True)
        assert torch.equal(drawn(again), drawn(pipeline))

    def test_a_student_that_lacks_a_tensor_is_refused(
        self, make_pipeline: MakePipeline, reloaded: Callable[..., ARDPipeline], tmp_path: Path
    ) -> None:
        reloaded(make_pipeline())
        path = tmp_path / "pipeline/student" / WEIGHTS
        save_file({name: value for name, value in load_file(path).items() if name != "student.gates"}, path)
        with pytest.raises(InputError, match=r"the student's weights lack student.gates; its folder is damaged"):
            ARDPipeline.from_pretrained(tmp_path / "pipeline")

    def test_models_that_do_not_fit_are_refused(
        self, make_carded_student: MakeStudent, autoencoder_folder: Path
    ) -> None:
        student, other = student_model(*make_carded_student(2)), torch.nn.Linear(1, 1)
        vae = load_autoencoder(autoencoder_folder, CPU).network
        with pytest.raises(InputError, match="the student is a Linear; ARDPipeline takes an ARDStudentModel"):
            _check_components(other, None)
        with pytest.raises(InputError, match="the vae is a Linear; ARDPipeline takes an AutoencoderKL"):
            _check_components(student, other)
        with pytest.raises(InputError, match="decodes latents of 4 channels, and the student makes 2"):
            ARDPipeline(student, vae)
        own, card = make_carded_student(4)
        scaled = student_model(own, replace(card, latents=LatentScale(scaling_factor=0.13025)))
        with pytest.raises(InputError, match=r"scales its latents by 0\.18215, the teacher's by 0\.13025; decode"):
            ARDPipeline(scaled, vae)

    def test_a_card_is_written_and_an_edited_one_is_carried_on(
        self, make_pipeline: MakePipeline, reloaded: Callable[..., ARDPipeline], tmp_path: Path
    ) -> None:
        loaded = reloaded(make_pipeline())
        card = tmp_path / "pipeline/README.md"
        assert "| steps S | 3, at the points 0, 4, 8, 12 of the teacher's 12 euler steps |" in card.read_text()
        card.write_text("edited")
        (tmp_path / "pipeline/samples.png").write_bytes(b"samples")
        loaded.save_pretrained(tmp_path / "copy")
        assert (tmp_path / "copy/README.md").read_text() == "edited"
        assert (tmp_path / "copy/samples.png").read_bytes() == b"samples"


class TestHub:
    """push_to_hub, up to what leaves the machine."""

    def test_the_whole_folder_is_uploaded_with_its_card(
        self,
        make_pipeline: MakePipeline,
        reloaded: Callable[..., ARDPipeline],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        created, uploaded = [], {}

        class Repository:
            repo_id = "me/digits"

        def create(repo_id: str, **options: Any) -> Repository:
            created.append((repo_id, options["private"]))
            return Repository()

        def upload(*, repo_id: str, folder_path: str, **options: Any) -> str:
            files = (path for path in Path(folder_path).rglob("*") if path.is_file())
            uploaded.update({str(path.relative_to(folder_path)): path.read_bytes() for path in files})
            return f"{repo_id}: {options['commit_message']}"

        def no_card(*_: Any, **__: Any) -> None:
            raise hub_utils.EntryNotFoundError("there is none yet")

        monkeypatch.setattr(hub_utils, "create_repo", create)
        monkeypatch.setattr(hub_utils, "upload_folder", upload)
        monkeypatch.setattr(hub_utils.ModelCard, "load", no_card)
        loaded = reloaded(make_pipeline(4))
        (tmp_path / "pipeline/README.md").write_text("the card")
        (tmp_path / "pipeline/samples.png").write_bytes(b"samples")
        assert loaded.push_to_hub("digits", private=True, commit_message="first") == "me/digits: first"
        assert created == [("digits", True)]
        assert uploaded.pop("README.md") == b"the card"
        assert uploaded.pop("samples.png") == b"samples"
        models = {f"{part}/{name}" for part in ("student", "vae") for name in ("config.json", WEIGHTS)}
        assert uploaded.keys() == {"model_index.json", *models}

    def test_a_pipeline_on_the_hub_is_loaded(
        self,
        make_pipeline: MakePipeline,
        reloaded: Callable[..., ARDPipeline],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """With a folder in place of the hub's cache: diffusers looks over the names of the parts before it reads it."""
        pipeline = make_pipeline(4)
        reloaded(pipeline)
        folder = tmp_path / "pipeline"
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
        monkeypatch.setattr(pipeline_utils, "_resolve_revision", lambda *_, **__: "main")
        monkeypatch.setattr(pipeline_utils, "model_info", lambda *_, **__: info)
        monkeypatch.setattr(pipeline_utils, "hf_hub_download", lambda *_, **__: str(folder / "model_index.json"))
        loaded = ARDPipeline.from_pretrained("me/digits-ard")
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(drawn(loaded, output_type="pt"), drawn(pipeline, output_type="pt"))


class TestPlacement:
    """Precision, offloading, compilation and tiles."""

    @pytest.mark.parametrize("how", ["loaded", "cast"])
    def test_in_bfloat16_the_network_is_rounded_and_the_trajectory_is_not(
        self, how: str, make_pipeline: MakePipeline, reloaded: Callable[..., ARDPipeline]
    ) -> None:
        pipeline = make_pipeline()
        exact, tau = drawn(pipeline), pipeline.student.student.tau.clone()
        pipeline = reloaded(pipeline, dtype=torch.bfloat16) if how == "loaded" else pipeline.to(torch.bfloat16)
        rounded = drawn(pipeline)
        assert {value.dtype for value in pipeline.student.state_dict().values()} == {torch.bfloat16}
        assert torch.equal(pipeline.student.student.tau, tau)
        assert not torch.equal(tau, tau.bfloat16().float())
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()

    def test_weights_stored_in_8_bits_compute_in_the_precision_that_they_are_cast_to(
        self, make_pipeline: MakePipeline
    ) -> None:
        exact, pipeline = drawn(make_pipeline()), make_pipeline().to(torch.bfloat16)
        pipeline.student.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
        stored = {value.dtype for value in pipeline.student.parameters()}
        assert stored == {torch.float8_e4m3fn, torch.bfloat16}
        assert 0 < (drawn(pipeline) - exact).abs().mean() < 0.2 * exact.abs().mean()

    def test_a_precision_that_the_rest_was_not_loaded_in_is_told(self, make_pipeline: MakePipeline) -> None:
        pipeline = make_pipeline()
        pipeline.student.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
        with pytest.raises(InputError, match=r"compute in torch.bfloat16, all else in torch.float32; load it with"):
            drawn(pipeline)

    def test_dynamically_quantised_layers_are_drawn_with(self, make_pipeline: MakePipeline) -> None:
        exact, pipeline = drawn(make_pipeline()), make_pipeline()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantise = torch.ao.quantization.quantize_dynamic
            pipeline.student.student = quantise(pipeline.student.student, {torch.nn.Linear}, torch.qint8)
            assert 0 < (drawn(pipeline) - exact).abs().mean() < 0.2 * exact.abs().mean()

    def test_offloading_moves_the_models_in_the_order_in_which_they_run(
        self, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipeline = make_pipeline(4)
        there = {name: part for name, part in pipeline.components.items() if part is not None}
        assert ARDPipeline.model_cpu_offload_seq.split("->") == ["text_encoder", *there]
        pictures, moved = drawn(pipeline, output_type="pt"), []
        pipeline.enable_model_cpu_offload(device="cpu")
        hooks = pipeline._all_hooks
        for name, model in there.items():
            before = model._hf_hook.pre_forward
            monkeypatch.setattr(
                model._hf_hook,
                "pre_forward",
                lambda *args, name=name, before=before, **kwargs: moved.append(name) or before(*args, **kwargs),
            )
        assert torch.equal(drawn(pipeline, output_type="pt"), pictures)
        assert moved == ["student"] * 3 + ["vae"]
        assert len(pipeline._all_hooks) == 2
        assert not set(pipeline._all_hooks) & set(hooks)  # Everything was moved back, and waits for the next call.

    def test_the_cache_is_where_the_noise_is(self, make_carded_student: MakeStudent) -> None:
        """Weights that are offloaded are elsewhere when the cache is made."""
        student, _ = make_carded_student()
        noise = torch.zeros(2, 1, 8, 8, device="meta")
        assert student.make_cache(noise).store.device.type == "meta"
        assert student.bfloat16().make_cache(noise).store.dtype == torch.bfloat16

    def test_compiled_it_draws_the_same(self, make_pipeline: MakePipeline, tmp_path: Path) -> None:
        """In a process of its own, because the compiler would trace the checks of shapes that the tests add."""
        pipeline = make_pipeline()
        pipeline.save_pretrained(tmp_path / "pipeline")
        torch.save(drawn(pipeline), tmp_path / "expected.pt")
        words = [sys.executable, "-W", "error", "-c", COMPILED, tmp_path / "pipeline", tmp_path / "expected.pt"]
        result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "again/student" / WEIGHTS).is_file()

    def test_tiles_are_the_autoencoders_own(self, make_pipeline: MakePipeline) -> None:
        pipeline = make_pipeline(4)
        whole = drawn(pipeline, output_type="pt")
        pipeline.vae.tile_latent_min_size = 4
        pipeline.vae.tile_sample_min_size = 8
        assert torch.equal(drawn(pipeline, output_type="pt"), whole)
        pipeline.enable_vae_tiling()
        assert not torch.equal(drawn(pipeline, output_type="pt"), whole)
        pipeline.disable_vae_tiling()
        assert torch.equal(drawn(pipeline, output_type="pt"), whole)

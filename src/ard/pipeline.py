"""ARDPipeline: a student as a pipeline of diffusers, which is also the format of the folders of `ard export`.

Importable only where diffusers is installed. The names and the place of both classes are in every exported folder.
"""

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float
from numpy import float32
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor, nn

from ard.condition import Condition, Prompts, to_device
from ard.config import from_plain, to_plain
from ard.errors import InputError, require_at_least
from ard.extras import importing
from ard.history import KVCache
from ard.model_card import CARD, SHEET, About, model_card
from ard.models.autoencoder import PICTURE_CHANNELS, decode_latents
from ard.models.student import Student
from ard.models.text_encoder import encoding
from ard.models.transformer import Backbone
from ard.pictures import to_pictures, to_pixels
from ard.students import StudentCard, build_student
from ard.text import encode_now
from ard.types import Labels, Latents, States

with importing("diffusers", "pipeline"):
    from diffusers import AutoencoderKL, ConfigMixin, DiffusionPipeline, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
    from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

# diffusers refuses a pipeline on the hub with parts from modules that it does not know.
LOADABLE_CLASSES[__name__] = {"ARDStudentModel": ["save_pretrained", "from_pretrained"]}

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

ClassLabels: TypeAlias = int | str | Sequence[int | str]
GivenPrompts: TypeAlias = str | Sequence[str] | Prompts
Generators: TypeAlias = Generator | Sequence[Generator] | None
OnStepEnd: TypeAlias = Callable[["ARDPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
Images: TypeAlias = list[Image.Image] | NDArray[float32] | Tensor


class ARDStudentModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not type-checked
    """A student with its card, as a model that diffusers saves, loads, moves, casts and compiles."""

    _repeated_blocks: ClassVar = ["Block", "TextBlock"]  # What compile_repeated_blocks compiles.
    _no_split_modules: ClassVar = ["Block", "TextBlock"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, card: dict[str, Any]) -> None:
        """`card` is a StudentCard in its plain form."""
        super().__init__()
        self.card = from_plain(StudentCard, card, where="the student's config.json")
        self.student = build_student(self.card).requires_grad_(requires_grad=False)
        # from_pretrained(dtype=...) makes it under that default; what no file holds, the position table, follows.
        nn.Module.to(self, torch.get_default_dtype())

    @property
    def network(self) -> Backbone:
        """The network."""
        return self.student.network

    def make_cache(self, noise: Latents) -> KVCache:
        """The cache of one call that starts from `noise`."""
        return self.student.make_cache(noise)

    def forward(self, states: States, condition: Condition, step: int, cache: KVCache) -> States:
        """The states after `step`; see Student."""
        next_states: States = self.student(states, condition, step=step, cache=cache)
        return next_states

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ARDStudentModel":
        """Moves and casts everything but the student's times, which would be others in bfloat16, and are only moved."""
        super()._apply(fn, recurse)
        self.student.tau = torch.tensor(self.card.tau, dtype=torch.float32, device=self.student.tau.device)
        return self


def student_model(student: Student, card: StudentCard) -> ARDStudentModel:
    """The student as a model of diffusers."""
    model = ARDStudentModel(card=to_plain(card)).eval()
    model.student.load_state_dict(student.state_dict())
    return model


class ARDPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is not type-checked
    """Draws pictures with a student, as other pipelines of diffusers do.

    A call keeps its key-value cache and all its state to itself, so that threads can share a pipeline (one that
    offloads its models cannot be shared: it moves them). The states stay in float32 whatever the weights' precision.
    """

    model_cpu_offload_seq = "text_encoder->student->vae"
    _optional_components: ClassVar = ["text_encoder", "tokenizer", "vae"]
    _callback_tensor_inputs: ClassVar = ["latents"]

    def __init__(
        self,
        student: ARDStudentModel,
        vae: AutoencoderKL | None = None,
        id2label: Mapping[str, str] | None = None,
        text_encoder: nn.Module | None = None,
        tokenizer: object | None = None,
        max_tokens: int | None = None,
        text_precision: str = "float32",
    ) -> None:
        """`vae` decodes the latents of students that do not make pictures; `id2label` has names by label.

        For students that read text: a T5 and its tokenizer, how many tokens of a prompt are read, and the precision in
        which the student's own prompts were encoded, float32 or bfloat16.
        """
        super().__init__()
        _check_components(student, vae)
        _check_text(student, text_encoder, tokenizer, max_tokens)
        if text_encoder and text_precision == "bfloat16":
            text_encoder.to(torch.bfloat16)  # Saved so; how it is loaded depends on the version of transformers.
        for part in filter(None, (student, vae, text_encoder)):
            part.requires_grad_(requires_grad=False)  # Kernels are chosen by it on some CPUs, and round otherwise.
        self.register_modules(text_encoder=text_encoder, tokenizer=tokenizer, student=student, vae=vae)
        self.register_to_config(id2label=dict(id2label or {}))
        if text_encoder:
            self.register_to_config(max_tokens=max_tokens, text_precision=text_precision)

    @property
    def labels(self) -> dict[str, int]:
        """The label of every class name; a class may have several, with commas between."""
        names = (
            (name.strip(), int(label))
            for label, all_of_it in self.config.id2label.items()
            for name in all_of_it.split(",")
        )
        return {name: label for name, label in names if name}

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels | None = None,
        prompt: GivenPrompts | None = None,
        *,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        latents: Latents | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Images]:
        """The pictures of `class_labels`, numbers or names, or of `prompt`, `num_images_per_prompt` of each.

        Prompts are texts, or were encoded before: EncodedText(folder).condition(numbers). A picture is its label or its
        prompt and its noise, which comes from `latents` or from `generator`: a list has a generator per picture, and
        one on the CPU with the manual seed s gives the picture of seed s of `ard sample`.
        `num_inference_steps` may be the student's own number only. `output_type` is pil, np, pt or latent.
        `callback_on_step_end(pipeline, step, time, {"latents": x})` may return other latents, and ends the call after
        the step when it sets `pipeline._interrupt`.
        """
        self._check_inputs(num_images_per_prompt, num_inference_steps, output_type, callback_on_step_end_tensor_inputs)
        condition = self._condition(class_labels, prompt, num_images_per_prompt)
        noise = self._noise(len(condition), generator, latents)
        states = self._last_states(noise, to_device(condition, noise.device), callback_on_step_end)
        images = self._images(states, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_inputs(self, num_images: int, num_steps: int | None, output_type: str, inputs: Sequence[str]) -> None:
        """InputError for what this student cannot do."""
        own, channels = self.student.card.student.num_steps, self.student.card.network.channels
        require_at_least(1, {"num_images_per_prompt": num_images})
        if num_steps not in {None, own}:
            raise InputError(f"num_inference_steps is {num_steps}; this student was distilled for {own} steps only")
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type is {output_type!r}; allowed: {', '.join(OUTPUT_TYPES)}")
        if self.vae is None and channels not in PICTURE_CHANNELS and output_type != "latent":
            raise InputError(
                f"this student makes latents of {channels} channels and the pipeline has no vae to decode them; give "
                'one with from_pretrained(..., vae=...), or ask for output_type="latent"'
            )
        if unknown := set(inputs) - set(self._callback_tensor_inputs):
            raise InputError(f"callback_on_step_end_tensor_inputs names {', '.join(sorted(unknown))}; allowed: latents")

    def _condition(
        self, class_labels: ClassLabels | None, prompt: GivenPrompts | None, repeats: int
    ) -> Labels | Prompts:
        """What the network is conditioned on, a row for each picture."""
        given: Labels | Prompts
        if self.student.card.network.text is None:
            if prompt is not None:
                raise InputError("this student knows classes, no text: give class_labels in place of prompt")
            given = self._labels_given(class_labels)
        else:
            if class_labels is not None:
                raise InputError("this student reads text, it has no classes: give prompt in place of class_labels")
            given = self._prompts_given(prompt)
        return given[torch.arange(len(given)).repeat_interleave(repeats)]

    def _labels_given(self, class_labels: ClassLabels | None) -> Labels:
        given = [class_labels] if isinstance(class_labels, int | str) else list(class_labels or [])
        if not given:
            raise InputError(f"class_labels is empty; {self._allowed_labels()}")
        return torch.tensor([self._label(one) for one in given])

    def _prompts_given(self, prompt: GivenPrompts | None) -> Prompts:
        found = prompt if isinstance(prompt, Prompts) else self._encoded(prompt)
        if (width := found.tokens.shape[2]) != (wanted := self.student.card.network.text.width):
            raise InputError(f"the prompts have text of width {width}, and this student reads {wanted}")
        return found

    def _encoded(self, prompt: str | Sequence[str] | None) -> Prompts:
        """Texts as `ard text encode` makes of them."""
        texts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        if not texts:
            raise InputError("prompt is empty; this student reads text: give one, or a list of them")
        if self.text_encoder is None:
            raise InputError(
                "this pipeline has no text encoder: give one to ard export with --text-encoder, or as prompt what ard "
                "text encode made, EncodedText(folder).condition(numbers)"
            )
        length, device = self.config.max_tokens, self._execution_device
        encode = encoding(self.text_encoder, self.tokenizer, max_tokens=length, device=device)
        return encode_now(texts, encode, max_tokens=length)

    def _label(self, given: int | str) -> int:
        """A label from its number or its name."""
        label = self.labels.get(given.strip(), -1) if isinstance(given, str) else int(given)
        if not 0 <= label < self.student.card.network.num_classes:
            raise InputError(f"class label {given!r} is unknown; {self._allowed_labels()}")
        return label

    def _allowed_labels(self) -> str:
        names = ", or a name in pipe.labels" if self.labels else ""
        return f"allowed: 0 to {self.student.card.network.num_classes - 1}{names}"

    def _noise(self, count: int, generator: Generators, latents: Latents | None) -> Latents:
        """Each picture's own noise, from its own generator; a single one is asked for one picture after the other."""
        network, device = self.student.card.network, self._execution_device
        shape = (network.channels, network.latent_size, network.latent_size)
        if latents is not None:
            if latents.shape != (count, *shape):
                found, wanted = (" x ".join(map(str, sizes)) for sizes in (latents.shape, (count, *shape)))
                raise InputError(f"latents is {found}; this student and these {count} pictures need {wanted}")
            return latents.to(device, torch.float32)
        generators = [generator] * count if isinstance(generator, Generator | None) else generator
        if len(generators) != count:
            raise InputError(f"{len(generators)} generators for {count} pictures; give one, or one for each")
        return torch.stack([_draw(shape, one).to(device) for one in generators])

    def _last_states(self, noise: Latents, condition: Condition, on_step_end: OnStepEnd | None) -> Latents:
        """The states after the last step, or after the one that was interrupted."""
        _CALL.interrupted = False
        num_steps, cache, x = self.student.card.student.num_steps, self.student.make_cache(noise), noise
        with self.progress_bar(total=num_steps) as bar:
            for step in range(num_steps):
                x = self.student(x.unsqueeze(1), condition, step, cache).squeeze(1)
                if on_step_end:
                    time = torch.tensor(self.student.card.tau[step])
                    x = (on_step_end(self, step, time, {"latents": x}) or {}).get("latents", x)
                bar.update()
                if self._interrupt:
                    break
        return x

    def _images(self, states: Latents, output_type: str) -> Images:
        """The states as `output_type` says; PIL's are those of `ard sample`, the others are in [0, 1]."""
        if output_type == "latent":
            return states
        images = states if self.vae is None else decode_latents(self.vae, states)
        if output_type == "pil":
            return to_pictures(to_pixels(images).cpu())
        scaled = (images.float() / 2 + 0.5).clamp(0, 1)
        return scaled if output_type == "pt" else scaled.permute(0, 2, 3, 1).cpu().numpy()

    @property
    def _interrupt(self) -> bool:
        """Whether the call that this thread is in ends after its step; a callback sets it."""
        return _CALL.interrupted

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        _CALL.interrupted = value

    def enable_vae_tiling(self) -> None:
        """Decode in tiles whatever the size; images of more than 1024 pixels along a side always are."""
        self._require_vae().enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode in one piece, except for images of more than 1024 pixels along a side."""
        self._require_vae().disable_tiling()

    def _require_vae(self) -> Any:
        if self.vae is None:
            raise InputError("this pipeline has no vae: its student makes pictures, and tiles have no meaning")
        return self.vae

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False) -> None:
        """Write model_index.json, as save_pretrained does last, and the model card where there is none yet."""
        super().save_config(save_directory, push_to_hub=push_to_hub)
        if not (Path(save_directory) / CARD).exists():
            self._write_card(Path(save_directory))

    def _upload_folder(
        self,
        working_dir: str | Path,
        repo_id: str,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
    ) -> Any:
        """Upload with the model card in place of diffusers' empty one, which push_to_hub has just written over it."""
        self._write_card(Path(working_dir))
        return super()._upload_folder(working_dir, repo_id, token, commit_message, create_pr, subfolder)

    def _write_card(self, folder: Path) -> None:
        """The card and the samples of the folder that the pipeline was loaded from, or a card from the student's."""
        source = Path(self.name_or_path or "")
        if not (self.name_or_path and (source / CARD).is_file()):
            about = About(text_encoder=type(self.text_encoder).__name__ if self.text_encoder else "")
            (folder / CARD).write_text(model_card(self.student.card, about))
            return
        for path in (source / CARD, source / SHEET):
            if path.is_file() and path.resolve() != (folder / path.name).resolve():
                shutil.copyfile(path, folder / path.name)


class _Call(threading.local):
    """What a call keeps outside of its stack: each thread has its own."""

    interrupted = False


_CALL = _Call()


def _draw(shape: tuple[int, int, int], generator: Generator | None) -> Float[Tensor, "channel height width"]:
    """Noise from `generator`, made where it lives; from PyTorch's own on the CPU without one."""
    return torch.randn(shape, generator=generator, device=generator.device if generator else "cpu")


def _check_components(student: Any, vae: Any) -> None:
    """InputError for models that do not fit this pipeline or each other."""
    if not isinstance(student, ARDStudentModel):
        raise InputError(f"the student is a {type(student).__name__}; ARDPipeline takes an ARDStudentModel")
    if lacking := [name for name, parameter in student.named_parameters() if parameter.is_meta]:
        raise InputError(f"the student's weights lack {', '.join(lacking[:5])}; its folder is damaged, export it again")
    if vae is None:
        return
    if not isinstance(vae, AutoencoderKL):
        raise InputError(f"the vae is a {type(vae).__name__}; ARDPipeline takes an AutoencoderKL")
    if vae.config.latent_channels != (channels := student.card.network.channels):
        raise InputError(
            f"the vae decodes latents of {vae.config.latent_channels} channels, and the student makes {channels}"
        )


def _check_text(student: ARDStudentModel, text_encoder: Any, tokenizer: Any, max_tokens: int | None) -> None:
    """InputError for a text encoder that this student cannot read, or that is not whole."""
    if text_encoder is None:
        return
    text = student.card.network.text
    if text is None:
        raise InputError("this student knows classes, no text: leave out the text encoder")
    if tokenizer is None or max_tokens is None:
        raise InputError("a text encoder needs its tokenizer and max_tokens, which ard export writes")
    if text_encoder.config.d_model != text.width:
        raise InputError(
            f"the text encoder makes text of width {text_encoder.config.d_model}, and the student reads {text.width}"
        )
